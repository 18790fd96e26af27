// Command nodeinit is the first process of a node of the local cluster, and of its pods' pause containers.
//
//	nodeinit node FILE   sets up the mount namespace it is in, as FILE (JSON, type Setup) says, writes a byte to descriptor 3 and stays
//	nodeinit pause       stays; the program's name may be pause instead
//
// Both wait for the children that end, which is what a first process is there for. It is built by itself, from this file alone and with the standard
// library only.
package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
)

// Setup is what a node's mount namespace becomes.
type Setup struct {
	Hostname string
	Keep     []string          // mount points that stay, with those above and, for those that end in /, those below them
	Tmpfs    []string          // folders that become empty memory file systems
	Bind     map[string]string // folders and files (keys) that show others (values), which have to exist; after Tmpfs
	Shared   bool              // mounts made in a container (Bidirectional) show up in the node
}

func main() {
	var err error
	switch {
	case filepath.Base(os.Args[0]) == "pause" || len(os.Args) == 2 && os.Args[1] == "pause":
		// Without a handler, a namespace's first process is not sent SIGTERM at all.
		ends := make(chan os.Signal, 1)
		signal.Notify(ends, syscall.SIGTERM, syscall.SIGINT)
		go reap()
		<-ends
		return
	case len(os.Args) >= 3 && os.Args[1] == "node":
		if err = setUp(os.Args[2]); err == nil {
			reap()
		}
	default:
		err = errors.New("usage: nodeinit node FILE | pause")
	}
	fmt.Fprintln(os.Stderr, "nodeinit:", err)
	os.Exit(1)
}

// reap waits for children for ever.
func reap() {
	children := make(chan os.Signal, 1)
	signal.Notify(children, syscall.SIGCHLD)
	for range children {
		for {
			if pid, err := syscall.Wait4(-1, nil, syscall.WNOHANG, nil); pid <= 0 && !errors.Is(err, syscall.EINTR) {
				break
			}
		}
	}
}

func setUp(file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	var s Setup
	if err := json.Unmarshal(text, &s); err != nil {
		return fmt.Errorf("read %s: %w", file, err)
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make the mounts private: %w", err)
	}
	// The /proc of whoever made this namespace does not know this process; so before anything is read from it.
	if err := syscall.Mount("proc", "/proc", "proc", syscall.MS_NOSUID|syscall.MS_NODEV|syscall.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := dropMounts(s.Keep); err != nil {
		return err
	}
	if err := syscall.Sethostname([]byte(s.Hostname)); err != nil {
		return fmt.Errorf("set the host name: %w", err)
	}
	if err := mounts(s); err != nil {
		return err
	}
	ready := os.NewFile(3, "ready")
	if _, err := ready.Write([]byte{1}); err != nil {
		return fmt.Errorf("tell that the node is set up: %w", err)
	}
	return ready.Close()
}

func mounts(s Setup) error {
	for _, dir := range s.Tmpfs {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
		if err := syscall.Mount("tmpfs", dir, "tmpfs", syscall.MS_NOSUID|syscall.MS_NODEV, "mode=755"); err != nil {
			return fmt.Errorf("mount a tmpfs at %s: %w", dir, err)
		}
	}
	// All are opened before the first is mounted: one may hide the source of another.
	type pair struct {
		from *os.File
		to   string
	}
	var pairs []pair
	for to, from := range s.Bind {
		f, err := os.OpenFile(from, syscall.O_RDONLY|syscall.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer f.Close()
		pairs = append(pairs, pair{f, to})
	}
	slices.SortFunc(pairs, func(a, b pair) int { return strings.Compare(a.to, b.to) })
	for _, p := range pairs {
		if info, err := p.from.Stat(); err == nil && info.IsDir() {
			if err := os.MkdirAll(p.to, 0o755); err != nil {
				return err
			}
		}
		if err := syscall.Mount(fmt.Sprintf("/proc/self/fd/%d", p.from.Fd()), p.to, "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount %s at %s: %w", p.from.Name(), p.to, err)
		}
	}
	if !s.Shared {
		return nil
	}
	if err := syscall.Mount("", "/", "", syscall.MS_REC|syscall.MS_SHARED, ""); err != nil {
		return fmt.Errorf("make the mounts shared: %w", err)
	}
	return nil
}

// dropMounts gives up this namespace's copies of mounts that a node does not need. They would keep busy what the machine's other users unmount.
func dropMounts(keep []string) error {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	var drop []string
	for _, line := range strings.Split(string(text), "\n") {
		if fields := strings.Fields(line); len(fields) > 4 && !kept(fields[4], keep) {
			drop = append(drop, fields[4])
		}
	}
	for _, at := range slices.Backward(drop) { // the newest first, for it may lie over or below an older one
		err := syscall.Unmount(at, syscall.MNT_DETACH)
		if err != nil && !errors.Is(err, syscall.EINVAL) && !errors.Is(err, syscall.ENOENT) { // gone with one above it
			return fmt.Errorf("give up the mount at %s: %w", at, err)
		}
	}
	return nil
}

func kept(at string, keep []string) bool {
	for _, k := range keep {
		below := strings.HasSuffix(k, "/")
		k = strings.TrimSuffix(k, "/")
		if at == "/" || k == at || strings.HasPrefix(k, at+"/") || below && strings.HasPrefix(at, k+"/") {
			return true
		}
	}
	return false
}

package kube

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// process is one of the machine's, by its number out here.
type process struct {
	pid, parent int
	args        []string
}

// name is the program's name, as it was called.
func (p process) name() string {
	if len(p.args) == 0 {
		return ""
	}
	return filepath.Base(p.args[0])
}

// processes lists those that have arguments: no kernel threads, none that only wait to be reaped.
func processes() (list []process, err error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(line) == 0 {
			continue // it has ended meanwhile
		}
		stat, err := os.ReadFile(filepath.Join(dir, "stat"))
		if err != nil {
			continue
		}
		// pid (name) state parent …; the name may hold anything, so the last parenthesis counts.
		fields := strings.Fields(string(stat[bytes.LastIndexByte(stat, ')')+1:]))
		if len(fields) < 2 {
			continue
		}
		parent, err := strconv.Atoi(fields[1])
		if err != nil {
			continue
		}
		list = append(list, process{pid, parent, strings.Split(strings.TrimSuffix(string(line), "\x00"), "\x00")})
	}
	return list, nil
}

// below are a process and all that descend from it.
func below(list []process, root int) (found []process) {
	in := map[int]bool{root: true}
	for grew := true; grew; {
		grew = false
		for _, p := range list {
			if !in[p.pid] && in[p.parent] {
				in[p.pid], grew = true, true
			}
		}
	}
	for _, p := range list {
		if in[p.pid] {
			found = append(found, p)
		}
	}
	return found
}

// setupFile is the file a namespace set is made from. Its path, as the argument of the first process, is how that one is found again.
func setupFile(dir string, number int) string {
	return filepath.Join(dir, nodeName(number), "setup.json")
}

// isInit says that a process is the first one of a namespace set of any cluster.
func (p process) isInit() bool {
	return p.name() == "nodeinit" && len(p.args) == 3 && p.args[1] == "node"
}

// inits are the first processes of a cluster's namespace sets, by number.
func inits(dir string) (map[int]int, error) {
	list, err := processes()
	if err != nil {
		return nil, err
	}
	found := map[int]int{}
	for _, p := range list {
		if !p.isInit() || filepath.Dir(filepath.Dir(p.args[2])) != dir {
			continue
		}
		number, err := nodeNumber(filepath.Base(filepath.Dir(p.args[2])))
		if err == nil {
			found[number] = p.pid
		}
	}
	return found, nil
}

// init is the first process of the namespace set of that number.
func (c *Cluster) init(number int) (int, error) {
	found, err := inits(c.dir)
	if err != nil {
		return 0, err
	}
	if pid, ok := found[number]; ok {
		return pid, nil
	}
	return 0, fmt.Errorf("%s: %w", nodeName(number), ErrDown)
}

func nodeName(number int) string {
	if number == 0 {
		return "control-plane"
	}
	return fmt.Sprintf("node-%d", number)
}

func nodeNumber(name string) (int, error) {
	if name == nodeName(0) {
		return 0, nil
	}
	return strconv.Atoi(strings.TrimPrefix(name, "node-"))
}

// programs are the processes of a namespace set, containers included, that run a program of that name.
func (c *Cluster) programs(number int, name string) (found []process, err error) {
	root, err := c.init(number)
	if err != nil {
		return nil, err
	}
	list, err := processes()
	if err != nil {
		return nil, err
	}
	for _, p := range below(list, root) {
		if p.name() == name {
			found = append(found, p)
		}
	}
	return found, nil
}

// mentioned says whether a process of a namespace set has this argument: it runs that program, or is about to.
func (c *Cluster) mentioned(number int, path string) (bool, error) {
	root, err := c.init(number)
	if err != nil {
		return false, err
	}
	list, err := processes()
	if err != nil {
		return false, err
	}
	return slices.ContainsFunc(below(list, root), func(p process) bool { return slices.Contains(p.args, path) }), nil
}

// signal sends a signal to a process if it still is the one that was found.
func (p process) signal(sig unix.Signal) error {
	fd, err := unix.PidfdOpen(p.pid, 0)
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("signal %s (%d): %w", p.name(), p.pid, err)
	}
	defer unix.Close(fd)
	// The descriptor holds the number now; what it stood for is checked after.
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	if err != nil || strings.TrimSuffix(string(line), "\x00") != strings.Join(p.args, "\x00") {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal %s (%d): %w", p.name(), p.pid, err)
	}
	return nil
}

// gone says that the process has ended; one that waits to be reaped has.
func (p process) gone() bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.pid))
	return err != nil || strings.TrimSuffix(string(line), "\x00") != strings.Join(p.args, "\x00")
}

// until asks until the answer is nil, first after 20 ms, later twice a second: a look at all processes costs a busy machine something. When ctx ends
// before, the last answer is the error.
func until(ctx context.Context, what string, ask func() error) error {
	pause := 20 * time.Millisecond
	timer := time.NewTimer(pause)
	defer timer.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		var final finalError
		if errors.As(err, &final) {
			return fmt.Errorf("wait until %s: %w", what, err)
		}
		select {
		case <-timer.C:
			pause = min(pause*3/2, 500*time.Millisecond)
			timer.Reset(pause)
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w (%w)", what, err, context.Cause(ctx))
		}
	}
}

// finalError is one that asking again does not mend.
type finalError struct{ error }

func (f finalError) Unwrap() error { return f.error }

// tail is the end of a log.
func tail(file string) string {
	text, err := os.ReadFile(file)
	if err != nil {
		return err.Error()
	}
	lines := strings.Split(strings.TrimRight(string(text), "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

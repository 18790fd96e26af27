package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"syscall"
	"time"
)

// setUpTime is how long a namespace set may take to appear.
const setUpTime = 30 * time.Second

// setup is what nodeinit reads; see its type Setup.
type setup struct {
	Hostname string
	Keep     []string
	Tmpfs    []string
	Bind     map[string]string
	Shared   bool
}

// own are a node's own folders in DIR/NODE, and where the node sees them. They stay when the node is stopped.
var own = map[string]string{"lib": "/var/lib", "log": "/var/log"}

// RingsKept is where a node sees a memory file system that outlives Stop. A real node loses it together with its kernel; here the kernel, its boot id
// and what was written to files stay, and an engine must find its rings wherever it finds its boot.
const RingsKept = "/run/rowan"

// ringsDir is where the control plane has the memory file system of all nodes' RingsKept.
func (c *Cluster) ringsDir() string { return c.path("rings") }

// startNamespaces makes the namespace set of that number.
func (c *Cluster) startNamespaces(ctx context.Context, number int) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("set up %s: %w", nodeName(number), err)
		}
	}()
	if _, err := c.init(number); !errors.Is(err, ErrDown) {
		return errors.Join(errors.New("it runs already"), err)
	}
	if err := c.writeSetup(number); err != nil {
		return err
	}
	args := []string{"unshare", "--mount", "--net", "--pid", "--uts", "--ipc", "--fork", "--kill-child", c.cache.Program("nodeinit"), "node",
		setupFile(c.dir, number)}
	if number != 0 {
		// From the control plane's mounts, where the rings are, not from the machine's.
		parent, err := c.init(0)
		if err != nil {
			return err
		}
		args = append([]string{"nsenter", "--target", strconv.Itoa(parent), "--mount", "--"}, args...)
	}
	log, err := c.openLog("init-" + nodeName(number))
	if err != nil {
		return err
	}
	defer log.Close()
	ready, end, err := os.Pipe()
	if err != nil {
		return err
	}
	defer ready.Close()
	cmd := exec.Command(args[0], args[1:]...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles, cmd.Dir = log, log, []*os.File{end}, "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true} // it outlives this process, and a Ctrl-C is not for it
	err = cmd.Start()
	if err = errors.Join(err, end.Close()); err != nil {
		return err
	}
	go cmd.Wait() //nolint:errcheck // how it ends is read from its log
	ctx, cancel := context.WithTimeout(ctx, setUpTime)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { ready.Close() })
	defer stop()
	if _, err := io.ReadFull(ready, make([]byte, 1)); err != nil {
		return errors.Join(context.Cause(ctx), errors.New(tail(log.Name())))
	}
	return nil
}

func (c *Cluster) writeSetup(number int) error {
	s := setup{Hostname: nodeName(number), Keep: []string{"/proc", "/sys/", "/dev/", "/usr/", "/etc/", "/bin/", "/sbin/", "/lib/", "/lib64/", "/opt/",
		c.dir + "/", c.cache.Dir}}
	dir := c.path(nodeName(number))
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if number == 0 {
		if err := os.MkdirAll(c.ringsDir(), 0o755); err != nil {
			return err
		}
		s.Tmpfs = []string{c.ringsDir()}
	} else {
		s.Shared, s.Tmpfs, s.Bind = true, []string{"/run"}, map[string]string{}
		for name, at := range own {
			if err := os.MkdirAll(filepath.Join(dir, name), 0o755); err != nil {
				return err
			}
			s.Bind[at] = filepath.Join(dir, name)
		}
		rings := filepath.Join(c.ringsDir(), nodeName(number))
		if _, err := run(c.command(context.Background(), 0, "mkdir", "-p", rings)); err != nil {
			return err
		}
		s.Bind[RingsKept] = rings
		if info, err := os.Lstat("/etc/machine-id"); err == nil && info.Mode().IsRegular() {
			s.Bind["/etc/machine-id"] = filepath.Join(dir, "machine-id")
			if err := os.WriteFile(s.Bind["/etc/machine-id"], fmt.Appendf(nil, "%032x\n", c.state.Index<<8|number), 0o644); err != nil {
				return err
			}
		}
	}
	text, err := json.Marshal(s)
	if err != nil {
		return err
	}
	return os.WriteFile(setupFile(c.dir, number), text, 0o644)
}

func (c *Cluster) openLog(name string) (*os.File, error) {
	if err := os.MkdirAll(c.LogDir(), 0o755); err != nil {
		return nil, err
	}
	return os.OpenFile(c.logFile(name), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
}

func (c *Cluster) logFile(name string) string { return filepath.Join(c.LogDir(), name+".log") }

// command runs in a namespace set. It fails when it is started, with nsenter's words, where the set is gone.
func (c *Cluster) command(ctx context.Context, number int, args ...string) *exec.Cmd {
	pid, err := c.init(number)
	enter := []string{"--target", strconv.Itoa(pid), "--mount", "--net", "--pid", "--uts", "--ipc", "--"}
	cmd := exec.CommandContext(ctx, "nsenter", append(enter, args...)...)
	cmd.Dir = "/"
	cmd.Env = append(os.Environ(), "PATH="+c.cache.Bin()+":/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	if err != nil {
		cmd.Err = err
	}
	return cmd
}

// daemon starts a program in a namespace set; it belongs to the set's first process from then on.
func (c *Cluster) daemon(ctx context.Context, number int, args ...string) error {
	name := filepath.Base(args[0])
	log, err := c.openLog(name + "-" + nodeName(number))
	if err != nil {
		return err
	}
	defer log.Close()
	// The shell ends at once, which makes the program the first process's child.
	cmd := c.command(ctx, number, append([]string{"sh", "-c", `setsid "$@" < /dev/null &`, "sh"}, args...)...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("start %s on %s: %w", name, nodeName(number), err)
	}
	return nil
}

// await waits for something that a daemon does, and gives up when the daemon has ended.
func (c *Cluster) await(ctx context.Context, number int, program, what string, ask func() error) error {
	ctx, cancel := context.WithTimeout(ctx, startTime)
	defer cancel()
	var missing time.Time
	err := until(ctx, what, func() error {
		err := ask()
		if err == nil {
			return nil
		}
		runs, lerr := c.mentioned(number, c.cache.Program(program))
		if lerr != nil || runs {
			missing = time.Time{}
			return err
		}
		// While a program is exchanged for another, its process shows no arguments; so one look is not enough.
		if missing.IsZero() {
			missing = time.Now()
		}
		if time.Since(missing) > 3*time.Second {
			return finalError{fmt.Errorf("%s has ended: %w", program, err)}
		}
		return err
	})
	if err != nil {
		log := c.logFile(program + "-" + nodeName(number))
		return fmt.Errorf("%w\nthe end of %s:\n%s", err, log, tail(log))
	}
	return nil
}

// startTime is how long a program may take until it answers, on a busy machine.
const startTime = 5 * time.Minute

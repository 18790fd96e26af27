package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// ErrLeft is in Down's error when something could not be taken away; the text names it.
var ErrLeft = errors.New("left behind")

// Down takes away the cluster in a folder, whatever there is of it, and the folder. Where there is none it does nothing.
func Down(ctx context.Context, dir string) error {
	c, err := Open(dir)
	if errors.Is(err, ErrNone) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.Down(ctx)
}

// Down takes the cluster away, and its folder.
func (c *Cluster) Down(ctx context.Context) error {
	unlock, err := lockMachine(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	// The control plane last: it is the parent of the nodes' mounts, and their switch.
	err = c.each(func(n *Node) error { return c.end(ctx, n.number) })
	err = errors.Join(err, c.end(ctx, 0))
	if err == nil {
		err = errors.Join(c.unplugMachine(ctx), restoreSettings(c.dir))
	}
	if err == nil {
		err = c.left()
	}
	if err != nil {
		return fmt.Errorf("take the cluster in %s down: %w; its logs are in %s; try again when what is named has ended", c.dir, err, c.LogDir())
	}
	return c.removeFolder()
}

// end ends all processes of a namespace set; with the last one go its mounts and links. Then it takes away what outlives processes: loop devices and
// cgroups.
func (c *Cluster) end(ctx context.Context, number int) error {
	note := devicesFile(c.dir, number)
	found, err := readDevices(note)
	if err != nil {
		return fmt.Errorf("read what is known of the devices of %s: %w", nodeName(number), err)
	}
	pid, err := c.init(number)
	switch {
	case errors.Is(err, ErrDown):
	case err != nil:
		return err
	default:
		if err := c.kill(ctx, number, pid, &found, note); err != nil {
			return err
		}
	}
	if err := found.abort(); err != nil {
		return err
	}
	if number != 0 {
		if err := c.unplug(ctx, number); err != nil {
			return err
		}
	}
	if err := clearLoops(ctx, &found, c.path(nodeName(number))); err != nil {
		return fmt.Errorf("detach what %s left: %w", nodeName(number), err)
	}
	if err := removeCgroups(ctx, cgroupName(c.state.Index, number)); err != nil {
		return err
	}
	if err := os.Remove(note); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// kill stops all processes, so that none makes a device that is not seen, takes notes, and kills the first one; the kernel ends the others with it.
func (c *Cluster) kill(ctx context.Context, number, pid int, found *devices, note string) error {
	list, err := freeze(pid)
	if err != nil {
		return err
	}
	if err := gather(list, found); err != nil {
		return err
	}
	text, err := json.Marshal(found)
	if err != nil {
		return err
	}
	if err := os.WriteFile(note, text, 0o644); err != nil {
		return err
	}
	for _, p := range list {
		if p.pid == pid {
			if err := p.signal(unix.SIGKILL); err != nil {
				return err
			}
		}
	}
	if err := found.abort(); err != nil { // a process that waits for its own server would never end
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	return until(ctx, "all processes of "+nodeName(number)+" have ended", func() error {
		for _, p := range list {
			if !p.gone() {
				return fmt.Errorf("process %d (%s) is still there", p.pid, p.name())
			}
		}
		return nil
	})
}

// freeze stops a process and all that descend from it. One that is stopped starts no others, so it is done when a look finds no new ones.
func freeze(root int) (all []process, err error) {
	stopped := map[int]bool{}
	for grew := true; grew; {
		list, err := processes()
		if err != nil {
			return nil, err
		}
		all, grew = below(list, root), false
		for _, p := range all {
			if !stopped[p.pid] {
				if err := p.signal(unix.SIGSTOP); err != nil {
					return nil, err
				}
				stopped[p.pid], grew = true, true
			}
		}
	}
	return all, nil
}

// clearLoops detaches the node's loop devices and waits until they are free.
func clearLoops(ctx context.Context, found *devices, folder string) error {
	ctx, cancel := context.WithTimeout(ctx, endTime)
	defer cancel()
	return until(ctx, "its loop devices are free", func() error {
		picked, err := found.ofNode(folder, loops())
		if err != nil {
			return err
		}
		var names []string
		for _, l := range picked {
			if err := l.clear(); err != nil {
				return err
			}
			names = append(names, l.name)
		}
		if len(names) > 0 {
			return fmt.Errorf("%s in use", strings.Join(names, ", "))
		}
		return nil
	})
}

// left looks for what should be gone.
func (c *Cluster) left() error {
	var left []string
	list, err := processes()
	if err != nil {
		return err
	}
	for _, p := range list {
		if p.isInit() && strings.HasPrefix(p.args[2], c.dir+"/") {
			left = append(left, fmt.Sprintf("process %d (%s)", p.pid, p.name()))
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(mounts)) {
		if fields := strings.Fields(line); len(fields) > 4 && strings.HasPrefix(fields[4], c.dir+"/") {
			left = append(left, "mount "+fields[4])
		}
	}
	if len(left) > 0 {
		return fmt.Errorf("%w: %s", ErrLeft, strings.Join(left, ", "))
	}
	return nil
}

// removeFolder removes the state last: until then a Down that stops half-way can be repeated. The folder itself goes if nothing of others is in it.
func (c *Cluster) removeFolder() error {
	entries, err := os.ReadDir(c.dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if file := filepath.Join(c.dir, e.Name()); file != stateFile(c.dir) {
			if err := os.RemoveAll(file); err != nil {
				return fmt.Errorf("remove the cluster's folder: %w", err)
			}
		}
	}
	if err := os.Remove(stateFile(c.dir)); err != nil {
		return err
	}
	return os.Remove(c.dir)
}

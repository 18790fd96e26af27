// Package mounttest is a mount.Mounter for tests without root: a mount table and the content of devices in memory. Targets are really made and
// removed, so that who looks finds them.
package mounttest

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	"github.com/rowan-csi/rowan/pkg/driver/mount"
)

// Fake stands for a machine. Its zero value is one with empty devices.
type Fake struct {
	// Size is what every device shows as its size. 0: more than any volume has.
	Size int64

	mu      sync.Mutex
	content map[string]string // of devices: a file system's name; guarded by mu, as all below
	table   []row
	fail    map[string]error
	calls   []string
}

type row struct {
	path, device, fsType string
	readOnly             bool
	options              []string
}

// SetContent chooses what is on a device.
func (f *Fake) SetContent(device, fsType string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.put(device, fsType)
}

// Fail makes a method fail from now on, until err is nil. A method's name is that of its Go method.
func (f *Fake) Fail(method string, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fail == nil {
		f.fail = map[string]error{}
	}
	f.fail[method] = err
}

// Calls answers, and forgets, the calls so far that changed something: the method and what it was about.
func (f *Fake) Calls() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	calls := f.calls
	f.calls = nil
	return calls
}

// Options are the mount options in force at path.
func (f *Fake) Options(path string) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	if r := f.at(path); r != nil {
		return r.options
	}
	return nil
}

// Mounts counts what is mounted.
func (f *Fake) Mounts() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.table)
}

// Detect answers what Format or SetContent put on the device.
func (f *Fake) Detect(ctx context.Context, device string) (found string, err error) {
	err = f.do(ctx, "Detect", "", func() error { found = f.content[device]; return nil })
	return found, err
}

// Format puts a file system on the device.
func (f *Fake) Format(ctx context.Context, device, fsType string, fresh bool) error {
	return f.do(ctx, "Format", fmt.Sprint(fsType, " fresh=", fresh), func() error { f.put(device, fsType); return nil })
}

// Check finds nothing wrong.
func (f *Fake) Check(ctx context.Context, _, fsType string) error {
	return f.do(ctx, "Check", fsType, func() error { return nil })
}

// Mount mounts what is on the device, if it is that.
func (f *Fake) Mount(ctx context.Context, device, dir, fsType string, options []string) error {
	return f.do(ctx, "Mount", fsType+" "+strings.Join(options, ","), func() error {
		if f.content[device] != fsType {
			return fmt.Errorf("mount %s: holds %q, not %q", device, f.content[device], fsType)
		}
		f.table = append(f.table, row{dir, device, fsType, slices.Contains(options, "ro"), options})
		return os.MkdirAll(dir, 0o750)
	})
}

// Grow grows nothing.
func (f *Fake) Grow(ctx context.Context, _, _, fsType string) error {
	return f.do(ctx, "Grow", fsType, func() error { return nil })
}

// GrowUnmounted grows nothing.
func (f *Fake) GrowUnmounted(ctx context.Context, _, fsType string) error {
	return f.do(ctx, "GrowUnmounted", fsType, func() error { return nil })
}

// BindDirectory shows what is mounted at source.
func (f *Fake) BindDirectory(ctx context.Context, source, target string, readOnly bool) error {
	return f.do(ctx, "BindDirectory", fmt.Sprint("ro=", readOnly), func() error {
		r := f.at(source)
		if r == nil {
			return fmt.Errorf("bind %s: nothing is mounted there", source)
		}
		f.table = append(f.table, row{target, r.device, r.fsType, readOnly || r.readOnly, r.options})
		return os.MkdirAll(target, 0o750)
	})
}

// BindDevice shows a device.
func (f *Fake) BindDevice(ctx context.Context, device, target string, readOnly bool) error {
	return f.do(ctx, "BindDevice", fmt.Sprint("ro=", readOnly), func() error {
		f.table = append(f.table, row{path: target, device: device, readOnly: readOnly})
		return errors.Join(os.MkdirAll(filepath.Dir(target), 0o750), os.WriteFile(target, nil, 0o660))
	})
}

// Unmount forgets what is mounted at path.
func (f *Fake) Unmount(ctx context.Context, path string) error {
	return f.do(ctx, "Unmount", "", func() error {
		f.table = slices.DeleteFunc(f.table, func(r row) bool { return r.path == path })
		return nil
	})
}

// Remove removes a target.
func (f *Fake) Remove(path string) error {
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// Lookup answers from the table.
func (f *Fake) Lookup(path, device string) (mount.Point, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	r := f.at(path)
	if r == nil {
		return mount.Point{}, f.fail["Lookup"]
	}
	return mount.Point{Mounted: true, Same: r.device == device, ReadOnly: r.readOnly, FSType: r.fsType}, f.fail["Lookup"]
}

// Targets answers from the table.
func (f *Fake) Targets(device string) ([]string, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	var paths []string
	for _, r := range f.table {
		if r.device == device {
			paths = append(paths, r.path)
		}
	}
	return paths, f.fail["Targets"]
}

// DeviceSize answers Size.
func (f *Fake) DeviceSize(string) (int64, error) {
	if f.Size == 0 {
		return 1 << 62, nil
	}
	return f.Size, nil
}

// Usage is of a file system of 1 GiB.
func (f *Fake) Usage(path string) (mount.Usage, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.at(path) == nil {
		return mount.Usage{}, fmt.Errorf("usage of %s: nothing is mounted there", path)
	}
	return mount.Usage{Bytes: 1 << 30, BytesUsed: 1 << 20, BytesFree: 1<<30 - 1<<20, Inodes: 1000, InodesUsed: 10, InodesFree: 990}, f.fail["Usage"]
}

func (f *Fake) do(ctx context.Context, method, about string, act func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if method != "Detect" {
		f.calls = append(f.calls, strings.TrimSpace(method+" "+about))
	}
	if err := f.fail[method]; err != nil {
		return err
	}
	return act()
}

func (f *Fake) at(path string) *row {
	for i := len(f.table) - 1; i >= 0; i-- {
		if f.table[i].path == path {
			return &f.table[i]
		}
	}
	return nil
}

func (f *Fake) put(device, fsType string) {
	if f.content == nil {
		f.content = map[string]string{}
	}
	f.content[device] = fsType
}

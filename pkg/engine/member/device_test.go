package member

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

func deviceSpec(t *testing.T, device string) Spec {
	spec := testSpec("")
	spec.Device, spec.MountDir = device, t.TempDir()
	return spec
}

func mountedAt(t *testing.T, point string) bool {
	t.Helper()
	table, err := mountTable()
	must(t, err)
	return slices.ContainsFunc(table, func(e mountEntry) bool { return e.point == point })
}

func TestDevice(t *testing.T) {
	device := loopDevice(t, 1<<30)
	spec := deviceSpec(t, device)
	m := mustCreate(t, fsys.OS(), spec)
	point := filepath.Join(spec.MountDir, "fast")
	if m.Dir() != filepath.Join(point, folderOnDevice) || m.Superblock().Device != device || !mountedAt(t, point) {
		t.Errorf("folder %s, device note %q, mounted %v", m.Dir(), m.Superblock().Device, mountedAt(t, point))
	}
	must(t, m.EnsureSegment(0))
	data := pattern(4096, 3)
	must(t, m.WriteAt(data, 1, 0))
	must(t, m.Flush())
	must(t, m.Close())
	if mountedAt(t, point) {
		t.Fatal("closed, and still mounted")
	}

	link := filepath.Join(t.TempDir(), "by-id") // as udev makes them
	must(t, os.Symlink(device, link))
	m = mustOpen(t, fsys.OS(), link, Options{MountDir: spec.MountDir})
	wantData(t, m, 1, 0, data)
	wantRefusal(t, create(deviceSpec(t, device)), ErrInUse, point)

	// The mount that a killed engine left is taken over, and undone on Close.
	must(t, m.closeFiles())
	m.closed = true
	m = mustOpen(t, fsys.OS(), device, Options{MountDir: spec.MountDir})
	wantData(t, m, 1, 0, data)
	must(t, m.Close())
	if mountedAt(t, point) {
		t.Error("closed, and a former engine's mount is still there")
	}

	// A mount that an administrator made is used where it is, and left.
	own := t.TempDir()
	must(t, unix.Mount(device, own, "xfs", 0, ""))
	m = mustOpen(t, fsys.OS(), device, Options{MountDir: spec.MountDir})
	if m.Dir() != filepath.Join(own, folderOnDevice) {
		t.Errorf("folder %s", m.Dir())
	}
	must(t, m.Close())
	must(t, unix.Unmount(own, 0))

	m = mustOpen(t, fsys.OS(), device, Options{MountDir: spec.MountDir})
	must(t, m.Destroy())
	must(t, mustCreate(t, fsys.OS(), spec).Close()) // it is blank again
}

func TestDeviceNotBlank(t *testing.T) {
	for _, c := range []struct{ name, want string }{{"ext4", "ext4"}, {"xfs", "xfs"}, {"partitions", "partition table (gpt)"}, {"swap", "swap"}} {
		t.Run(c.name, func(t *testing.T) {
			device := loopDevice(t, 1<<30)
			switch c.name {
			case "partitions":
				out, err := shell("printf 'label: gpt\\n,100M\\n' | PATH=$PATH:/usr/sbin sfdisk --quiet --no-reread " + device)
				if err != nil {
					t.Skipf("needs sfdisk: %v: %s", err, out)
				}
			case "swap":
				command(t, "mkswap", device)
			default:
				command(t, "mkfs."+c.name, "-q", device)
			}
			spec := deviceSpec(t, device)
			wantRefusal(t, create(spec), ErrNotBlank, c.want, "wiped")
			_, err := Open(fsys.OS(), device, Options{MountDir: spec.MountDir})
			wantRefusal(t, err, ErrNotFound)
			spec.Wipe = true
			m := mustCreate(t, fsys.OS(), spec)
			must(t, m.Close())
		})
	}
}

// What an interrupted Create left on a device is taken, mounted or not, from the file system on; what could be anything else is not.
func TestUnfinishedDevice(t *testing.T) {
	device := loopDevice(t, 1<<30)
	spec := deviceSpec(t, device)
	spec.Unfinished = true
	point := filepath.Join(spec.MountDir, "fast")

	must(t, makeXFS(device))
	m := mustCreate(t, fsys.OS(), spec)
	must(t, m.Close())
	if mountedAt(t, point) {
		t.Fatal("closed, and still mounted")
	}
	m = mustCreate(t, fsys.OS(), spec)
	must(t, m.closeFiles()) // the process died
	m.closed = true
	m = mustCreate(t, fsys.OS(), spec)
	must(t, m.Finish())
	must(t, m.Close())
	wantRefusal(t, create(spec), ErrNotBlank, "xfs", "wiped")

	must(t, mountAt(fsys.OS(), device, point))
	must(t, os.RemoveAll(filepath.Join(point, folderOnDevice)))
	must(t, os.WriteFile(filepath.Join(point, "photo.jpg"), []byte("x"), 0o600))
	wantRefusal(t, create(spec), ErrInUse, point)
	must(t, unix.Unmount(point, 0))
	wantRefusal(t, create(spec), ErrNotBlank, "wiped")
	must(t, mountAt(fsys.OS(), device, point))
	must(t, os.Remove(filepath.Join(point, "photo.jpg")))
	used, err := os.Open(point)
	must(t, err)
	wantRefusal(t, create(spec), unix.EBUSY, "fuser")
	must(t, used.Close())
	must(t, mustCreate(t, fsys.OS(), spec).Close())
}

// A failed Create leaves a blank device blank, and nothing mounted.
func TestDeviceStaysBlank(t *testing.T) {
	device := loopDevice(t, 1<<30)
	spec := deviceSpec(t, device)
	spec.Size = 1000 << 20 // fits on the device, not in the file system on it
	wantRefusal(t, create(spec), ErrNoSpace, "free")
	if found, err := signature(device); err != nil || found != nil {
		t.Errorf("the device holds %v, %v", found, err)
	}
	if mountedAt(t, filepath.Join(spec.MountDir, "fast")) {
		t.Error("it is still mounted")
	}
}

func TestDeviceRefuses(t *testing.T) {
	small := loopDevice(t, 64<<20)
	wantRefusal(t, create(deviceSpec(t, small)), ErrInvalid, "64 MiB", "512 MiB")

	spec := deviceSpec(t, small)
	spec.PoolName = "../up"
	wantRefusal(t, create(spec), ErrInvalid, "../up")
	wantRefusal(t, create(deviceSpec(t, "/dev/null")), ErrUnsupported, "not a block device")
	wantRefusal(t, create(deviceSpec(t, "/dev/no-such-device")), ErrNotFound)
	_, err := Open(fsys.OS(), small, Options{MountDir: t.TempDir()})
	wantRefusal(t, err, ErrNotFound, "nothing")

	dir, mounted := mountLoop(t, "ext4", 512<<20)
	spec = deviceSpec(t, mounted)
	spec.Wipe = true
	wantRefusal(t, create(spec), ErrInUse, "mounted at "+dir)

	device := loopDevice(t, 1<<30)
	spec = deviceSpec(t, device)
	point := filepath.Join(spec.MountDir, "fast")
	must(t, os.Mkdir(point, 0o700))
	must(t, unix.Mount("none", point, "tmpfs", 0, ""))
	defer func() { must(t, unix.Unmount(point, 0)) }()
	wantRefusal(t, create(spec), ErrInUse, point)
}

func TestMkfsOptions(t *testing.T) {
	for version, want := range map[string]string{
		"mkfs.xfs version 5.10.0\n": "", "mkfs.xfs version 5.19.0": "-i nrext64=0", "mkfs.xfs version 6.1.0": "-i nrext64=0",
		"mkfs.xfs version 6.13.0": "-i nrext64=0 -i exchange=0 -n parent=0", "?": "",
	} {
		if got := strings.Join(newerOptions(version), " "); got != want {
			t.Errorf("%s: %q, want %q", version, got, want)
		}
	}
}

func TestParseMount(t *testing.T) {
	e, ok := parseMount(`36 35 98:0 / /mnt\040two rw,noatime master:1 - ext3 /dev/root rw,nobarrier`)
	if !ok || e.device != unix.Mkdev(98, 0) || e.root != "/" || e.point != "/mnt two" || !slices.Contains(e.options, "nobarrier") {
		t.Errorf("%+v, %v", e, ok)
	}
	for _, line := range []string{"", "36 35 98 / /mnt rw - ext3 x rw", "36 35 98:0 / /mnt rw ext3 x rw"} {
		if e, ok := parseMount(line); ok {
			t.Errorf("%q is taken for %+v", line, e)
		}
	}
}

func shell(line string) ([]byte, error) { return exec.Command("sh", "-c", line).CombinedOutput() }

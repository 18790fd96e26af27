package fuseloop

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/attach/attachtest"
	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
)

// die is the child process of TestKilledWhileItWaits: it does what, and gets SIGKILL when it has read a request with that opcode and not answered it.
func die(socket, id, image, what, opcode string) error {
	ctx, cancel := context.WithTimeout(context.Background(), attachtest.Patience)
	defer cancel()
	at, err := strconv.ParseUint(opcode, 10, 32)
	if err != nil {
		return err
	}
	dev, err := blocktest.OpenFile(image, os.O_RDWR, 512)
	if err != nil {
		return err
	}
	var armed atomic.Bool
	var once sync.Once
	seen := make(chan struct{})
	a := New(Config{Keeper: socket})
	a.tap = func(op uint32) {
		if armed.Load() && op == uint32(at) {
			fmt.Println(connection()) // to be aborted if this process hangs
			if op != opRead {
				_ = unix.Kill(os.Getpid(), unix.SIGKILL)
			}
			once.Do(func() { close(seen) })
			select {}
		}
	}
	armed.Store(what == "attach")
	t, err := a.Attach(ctx, id, dev, attach.Options{})
	if err != nil || what == "attach" {
		return err
	}
	switch what {
	case "resize": // after a write, upon which the kernel no longer trusts its attributes
		if err := write(t.Path()); err != nil {
			return err
		}
		if err := os.Truncate(image, 8<<20); err != nil {
			return err
		}
		armed.Store(true)
		return t.Resize(ctx)
	case "detach":
		armed.Store(true)
		if at != opRead {
			return t.Detach(ctx)
		}
		// With reads under way, for which the last close waits, and with it the next open.
		if err := exec.Command("/proc/self/exe", "readahead", t.Path()).Start(); err != nil {
			return err
		}
		select {
		case <-seen:
		case <-ctx.Done():
			return ctx.Err()
		}
		time.AfterFunc(200*time.Millisecond, func() { _ = unix.Kill(os.Getpid(), unix.SIGKILL) })
		return t.Detach(ctx)
	}
	return fmt.Errorf("%q is nothing to do", what)
}

func write(path string) error {
	f, err := blocktest.OpenFile(path, os.O_RDWR|syscall.O_DIRECT, 512)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(blocktest.Aligned(4096), 0)
	return errors.Join(err, f.Close())
}

// willNeed leaves reads under way, as udev's probes do: it asks for a device's first megabyte and waits for nothing, but for the close at its end.
func willNeed(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(unix.Fadvise(int(f.Fd()), 0, 1<<20, unix.FADV_WILLNEED), f.Close())
}

func ramDevice() block.Device { return block.NewRAM(4<<20, 512) }

// connection finds this process's FUSE connection among its descriptors, without asking anybody; 0 when there is none.
func connection() uint32 {
	links, _ := filepath.Glob("/proc/self/fd/*")
	var root unix.Stat_t
	_ = unix.Stat("/", &root)
	for _, l := range links {
		to, err := os.Readlink(l)
		if err != nil || (to != "/" && !strings.HasPrefix(to, "/rowan-")) {
			continue
		}
		fd, _ := strconv.Atoi(filepath.Base(l))
		var st unix.Statx_t
		err = unix.Statx(fd, "", unix.AT_EMPTY_PATH|unix.AT_STATX_DONT_SYNC, unix.STATX_INO, &st)
		if err == nil && unix.Mkdev(st.Dev_major, st.Dev_minor) != root.Dev {
			return st.Dev_minor
		}
	}
	return 0
}

// TestKilledWhileItWaits kills a serving process at each request that the kernel sends it because of what it does itself. It must end at once, other
// attachments must go on, and the next process finish the work.
func TestKilledWhileItWaits(t *testing.T) {
	need(t)
	for _, step := range []struct {
		what   string
		name   string
		opcode uint32
		sure   bool // every kernel asks
	}{
		{"attach", "LOOKUP", opLookup, true},
		{"attach", "OPEN", opOpen, true},
		{"attach", "STATFS", opStatfs, false},
		{"attach", "FSYNC", opFsync, false},
		{"attach", "GETATTR", opGetattr, false},
		{"attach", "FLUSH", opFlush, true},
		{"resize", "SETATTR", opSetattr, true},
		{"resize", "GETATTR", opGetattr, false},
		{"detach", "READ", opRead, true},
		{"detach", "RELEASE", opRelease, false}, // by then it may have ended
	} {
		for _, handover := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/%s/handover=%t", step.what, step.name, handover), func(t *testing.T) {
				b := newBench(t)
				const id = "killed"
				image := filepath.Join(t.TempDir(), "image")
				if err := os.WriteFile(image, make([]byte, 4<<20), 0o600); err != nil {
					t.Fatal(err)
				}
				if !b.killedAt(t, id, image, step.what, step.opcode) {
					if step.sure {
						t.Fatal("it was not asked for")
					}
					t.Log("this kernel does not ask")
				}
				if handover {
					startKeeper(t, b.socket)
				}
				b.othersGoOn(t, step.opcode != opStatfs && step.opcode != opFsync) // where LOOP_CONFIGURE waits, losetup does, too
				b.finish(t, id, image)
			})
		}
	}
}

// killedAt runs die in a process, and returns whether it was killed.
func (b *bench) killedAt(t *testing.T, id, image, what string, opcode uint32) bool {
	t.Helper()
	cmd := exec.Command("/proc/self/exe", "die", b.socket, id, image, what, fmt.Sprint(opcode))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, ended := make(chan string, 1), make(chan error, 1)
	go func() {
		line, _ := bufio.NewReader(out).ReadString('\n')
		said <- strings.TrimSpace(line)
		ended <- cmd.Wait()
	}()
	number := <-said
	select {
	case err = <-ended:
	case <-time.After(20 * time.Second):
		t.Errorf("the killed process does not end: it waits for itself")
		n, perr := strconv.ParseUint(number, 10, 32)
		if perr != nil {
			t.Fatal(perr)
		}
		if err := abortConnection(identity{Dev: unix.Mkdev(0, uint32(n))}); err != nil {
			t.Fatal(err)
		}
		err = <-ended
	}
	if stderr.Len() > 0 {
		t.Errorf("the process said %s", stderr.Bytes())
	}
	status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus)
	if !ok || (!status.Signaled() && err != nil) {
		t.Fatalf("the process ended with %v", err)
	}
	return status.Signaled()
}

// othersGoOn attaches and detaches something else while the killed one's work still waits, and takes a loop device as anybody would.
func (b *bench) othersGoOn(t *testing.T, anybody bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, 10*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() {
		if !anybody {
			done <- nil
			return
		}
		file := filepath.Join(t.TempDir(), "plain")
		if err := os.WriteFile(file, make([]byte, 1<<20), 0o600); err != nil {
			done <- err
			return
		}
		out, err := exec.CommandContext(ctx, "losetup", "--find", "--show", file).CombinedOutput()
		if err != nil {
			done <- fmt.Errorf("losetup: %w: %s", err, out)
			return
		}
		out, err = exec.CommandContext(ctx, "losetup", "--detach", strings.TrimSpace(string(out))).CombinedOutput()
		if err != nil {
			err = fmt.Errorf("losetup --detach: %w: %s", err, out)
		}
		done <- err
	}()
	at, err := b.Attach(ctx, "other", ramDevice(), attach.Options{})
	if err == nil {
		err = at.Detach(ctx)
	}
	if err != nil {
		t.Errorf("another attachment, while nobody serves: %v", err)
	}
	select {
	case err := <-done:
		if err != nil {
			t.Error(err)
		}
	case <-ctx.Done():
		t.Error("another user of loop devices hangs")
	}
}

// finish goes on as the next process would.
func (b *bench) finish(t *testing.T, id, image string) {
	t.Helper()
	dev, err := blocktest.OpenFile(image, os.O_RDWR, 512)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dev.Close() }()
	infos, err := b.List(b.ctx)
	if err != nil || len(infos) > 1 {
		t.Fatalf("list: %+v, %v", infos, err)
	}
	var at attach.Attachment
	if len(infos) == 1 {
		at, err = b.Resume(b.ctx, id, dev)
	} else {
		at, err = b.Attach(b.ctx, id, dev, attach.Options{})
	}
	if err != nil {
		t.Fatal(err)
	}
	if err := at.Resize(b.ctx); err != nil {
		t.Error(err)
	}
	f, err := blocktest.OpenFile(at.Path(), os.O_RDWR|syscall.O_DIRECT, 512)
	if err != nil {
		t.Fatal(err)
	}
	if f.Size() != dev.Size() {
		t.Errorf("the device shows %d bytes of %d", f.Size(), dev.Size())
	}
	if err := errors.Join(f.Flush(), f.Close(), write(at.Path())); err != nil {
		t.Error(err)
	}
	if err := at.Err(); err != nil {
		t.Errorf("it is served no more: %v", err)
	}
	if err := at.Detach(b.ctx); err != nil {
		t.Fatal(err)
	}
	b.nothingLeft(t, id)
}

// TestKeeperStopsWhileAWorkWaits: with the server dead, the keeper's end takes the last descriptor, upon which the kernel fails what waits.
func TestKeeperStopsWhileAWorkWaits(t *testing.T) {
	need(t)
	ctx, cancel := context.WithTimeout(context.Background(), attachtest.Patience)
	defer cancel()
	b := &bench{socket: filepath.Join(t.TempDir(), "keeper.sock"), ctx: ctx}
	stop := startKeeper(t, b.socket)
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, make([]byte, 4<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	if !b.killedAt(t, "stopped", image, "attach", opOpen) {
		t.Fatal("it was not asked for")
	}
	stop() // fails when it takes too long
	startKeeper(t, b.socket)
	b.restart(t, false)
	b.finish(t, "stopped", image)
}

package crash

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/hack/stack"
	"github.com/rowan-csi/rowan/pkg/engine"
)

const (
	ext4Size = 192 * mi
	writers  = 4
	keptSize = 4 * mi // of files that do not change after the first sync
)

// ext4 is the phase under a file system: files are written and compared while the engine is killed; snapshots of the mounted file system must be ones
// that its journal makes whole.
func (m *machine) ext4(ctx context.Context, kills int) error {
	const name = "files"
	if err := m.create(ctx, engine.VolumeSpec{Name: name, Size: ext4Size}); err != nil {
		return err
	}
	device, err := m.attach(ctx, name)
	if err != nil {
		return err
	}
	if err := tool(ctx, "mkfs.ext4", "-q", device); err != nil {
		return err
	}
	dir := filepath.Join(m.Dir, "mnt")
	if err := mountExt4(device, dir); err != nil {
		return err
	}
	kept := newWriter(filepath.Join(dir, "kept"), *seed)
	if err := kept.fill(keptSize); err != nil {
		return err
	}
	all, err := m.writeFiles(ctx, name, dir, kills)
	if err != nil {
		return err
	}
	all = append(all, kept)
	if err := m.compare(ctx, device, dir, all); err != nil {
		return err
	}
	if err := errors.Join(m.detach(ctx, name), m.remove(ctx, name), m.check(ctx)); err != nil {
		return err
	}
	return m.empty(ctx)
}

// writeFiles writes files while the engine is killed, and takes and looks at a snapshot after every second kill.
func (m *machine) writeFiles(ctx context.Context, name, dir string, kills int) ([]*writer, error) {
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	var all []*writer
	var wg sync.WaitGroup
	errs := make([]error, writers)
	writing, enough := context.WithCancel(ctx)
	defer enough()
	for i := range writers {
		w := newWriter(filepath.Join(dir, fmt.Sprintf("w%d", i)), *seed+uint64(i)+1)
		all = append(all, w)
		wg.Go(func() {
			if errs[i] = w.run(writing); errs[i] != nil {
				stop(errs[i])
			}
		})
	}
	done := func() (n int64) {
		for _, w := range all {
			n += w.done.Load()
		}
		return n
	}
	dead := func() error { return context.Cause(ctx) }
	var err error
	for k := 0; k < kills && err == nil; k++ {
		err = m.killFiles(ctx, 20+m.rng.Int64N(150), done, dead)
		if k%2 == 0 && err == nil {
			err = m.snapshotFiles(ctx, name, fmt.Sprintf("files-%d", k))
		}
	}
	enough()
	if err != nil {
		err = errors.Join(err, m.Abort()) // writers may hang on a device that nobody serves
	}
	wg.Wait()
	for _, w := range all {
		m.filesWrong += w.wrong
		m.written += w.written
		if w.failed {
			m.ioErrors++
		}
	}
	return all, errors.Join(append(errs, err)...)
}

// killFiles kills the engine after n more files.
func (m *machine) killFiles(ctx context.Context, n int64, done func() int64, dead func() error) error {
	if err := m.progress(ctx, n, done, dead); err != nil {
		return err
	}
	began := time.Now()
	if err := m.kill(); err != nil {
		return err
	}
	if err := m.StartEngine(ctx); err != nil {
		return err
	}
	if err := m.progress(ctx, 1, done, dead); err != nil {
		return err
	}
	m.longest = max(m.longest, time.Since(began))
	return nil
}

// snapshotFiles takes a snapshot of the mounted file system, and has the journal and fsck look at what is in it.
func (m *machine) snapshotFiles(ctx context.Context, name, snapshot string) error {
	err := m.call(ctx, "snapshot "+snapshot, func(ctx context.Context) error {
		_, err := m.Engine.CreateSnapshot(ctx, m.Pool, engine.SnapshotSpec{Name: snapshot, Volume: name})
		return err
	}, engine.ErrExists)
	if err != nil {
		return err
	}
	clone := "restored-" + snapshot
	if err := m.create(ctx, engine.VolumeSpec{Name: clone, FromSnapshot: snapshot}); err != nil {
		return err
	}
	device, err := m.attach(ctx, clone)
	if err != nil {
		return err
	}
	dir := filepath.Join(m.Dir, clone)
	if err := mountExt4(device, dir); err != nil {
		return err
	}
	kept := newWriter(filepath.Join(dir, "kept"), *seed)
	kept.expect(keptSize)
	err = errors.Join(kept.compare(), unmount(ctx, dir))
	if m.filesWrong += kept.wrong; err != nil {
		return fmt.Errorf("snapshot %s: %w", snapshot, err)
	}
	if err := tool(ctx, "fsck.ext4", "-f", "-n", device); err != nil {
		return fmt.Errorf("snapshot %s: %w", snapshot, err)
	}
	m.snapshots++
	return errors.Join(m.detach(ctx, clone), m.remove(ctx, clone), m.removeSnapshot(ctx, snapshot))
}

// compare reads all files from the device, through a fresh mount, between two fscks.
func (m *machine) compare(ctx context.Context, device, dir string, all []*writer) error {
	count := "/sys/fs/ext4/" + filepath.Base(device) + "/errors_count"
	if text, err := os.ReadFile(count); err != nil || strings.TrimSpace(string(text)) != "0" {
		m.ioErrors++
		return fmt.Errorf("ext4 noted errors: %s is %q (%w)", count, text, err)
	}
	if err := unmount(ctx, dir); err != nil {
		return err
	}
	if err := tool(ctx, "fsck.ext4", "-f", "-n", device); err != nil {
		return err
	}
	if err := mountExt4(device, dir); err != nil {
		return err
	}
	var errs []error
	for _, w := range all {
		before := w.wrong
		errs = append(errs, w.compare())
		m.filesWrong += w.wrong - before
	}
	return errors.Join(append(errs, unmount(ctx, dir), tool(ctx, "fsck.ext4", "-f", "-n", device))...)
}

// mountExt4 mounts with discard, so that deleted files' blocks go back to the pool.
func mountExt4(device, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	if err := unix.Mount(device, dir, "ext4", 0, "discard,errors=continue"); err != nil {
		return fmt.Errorf("mount %s at %s: %w", device, dir, err)
	}
	return nil
}

func unmount(ctx context.Context, dir string) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return stack.Until(ctx, dir+" is unmounted", func() error {
		err := unix.Unmount(dir, 0)
		if err != nil && !errors.Is(err, syscall.EBUSY) {
			cancel()
		}
		return err
	})
}

func tool(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, out)
	}
	return nil
}

// source is a generator of its own for each use.
func source(seed uint64) *rand.Rand { return rand.New(rand.NewPCG(seed, 3)) }

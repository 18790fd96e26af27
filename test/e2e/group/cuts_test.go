package group

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rowan-csi/rowan/hack/stack"
	"github.com/rowan-csi/rowan/pkg/block"
)

var (
	cuts = flag.Int("cuts", 30, "how many groups are cut")
	seed = flag.Uint64("seed", 0, "0: a new one")
)

const (
	volumes    = 8
	slots      = 64
	volumeSize = 4 << 20
	poolSize   = 4 << 30
	judges     = 3 // cuts that are restored and judged side by side, while the writers write and others are cut
)

// world is the driver and its engine with writers on eight volumes, half of which redirect and half of which copy.
type world struct {
	t      *testing.T
	stack  *stack.Stack
	plugin plugin
	disks  []*disk
	load   *Load

	mu       sync.Mutex
	took     []time.Duration
	restored int
}

func newWorld(ctx context.Context, t *testing.T) *world {
	t.Helper()
	if err := stack.Check(); err != nil {
		t.Skip(err)
	}
	bin := t.TempDir()
	if err := stack.Build(ctx, bin); err != nil {
		t.Fatal(err)
	}
	s, err := stack.Start(ctx, stack.Config{Bin: bin, Name: "group", Size: poolSize, Driver: true, Temp: os.Getenv("TMPDIR"), Logs: t.ArtifactDir()})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, stack: s, plugin: newPlugin(s)}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if err := errors.Join(w.removeDisks(ctx), s.Close()); err != nil {
			t.Error(err)
		}
	})
	run := *seed
	if run == 0 {
		run = rand.Uint64() | 1
	}
	t.Logf("seed %d", run)
	var devices []block.Device
	for i := range volumes {
		d, err := w.plugin.open(ctx, fmt.Sprint("disk-", i), "", []string{"row", "cow"}[i%2], volumeSize)
		if err != nil {
			t.Fatal(err)
		}
		w.disks = append(w.disks, d)
		devices = append(devices, d)
	}
	w.load = NewLoad(run, slots, devices)
	return w
}

// removeDisks takes the written volumes away; again, it does nothing.
func (w *world) removeDisks(ctx context.Context) (err error) {
	for _, d := range w.disks {
		err = errors.Join(err, d.remove(ctx))
	}
	w.disks = nil
	return err
}

// cut is one group, and what it may hold.
type cut struct {
	name      string
	group     *csi.VolumeGroupSnapshot
	snapshots []string // of the volumes, in their order
	bounds    Bounds
}

func (w *world) cut(ctx context.Context, name string) (c cut, err error) {
	c.name = name
	var ids []string
	for _, d := range w.disks {
		ids = append(ids, d.id)
	}
	rand.Shuffle(len(ids), func(i, j int) { ids[i], ids[j] = ids[j], ids[i] })
	c.bounds.Least = w.load.Returned()
	begun := time.Now()
	resp, err := w.plugin.group.CreateVolumeGroupSnapshot(ctx, &csi.CreateVolumeGroupSnapshotRequest{Name: name, SourceVolumeIds: ids})
	took := time.Since(begun)
	c.bounds.Most = w.load.Sent()
	if err != nil {
		return c, fmt.Errorf("cut %s: %w", name, err)
	}
	w.mu.Lock()
	w.took = append(w.took, took)
	w.mu.Unlock()
	c.group = resp.GetGroupSnapshot()
	for _, d := range w.disks {
		i := slices.IndexFunc(c.group.GetSnapshots(), func(s *csi.Snapshot) bool { return s.GetSourceVolumeId() == d.id })
		if i < 0 {
			return c, fmt.Errorf("cut %s has no snapshot of volume %s: %v", name, d.id, c.group)
		}
		c.snapshots = append(c.snapshots, c.group.GetSnapshots()[i].GetSnapshotId())
	}
	return c, nil
}

// judge restores a cut's snapshots to volumes of their own and judges what these hold.
func (w *world) judge(ctx context.Context, c cut) (err error) {
	var restored []block.Device
	for i, snap := range c.snapshots {
		d, made := w.plugin.open(ctx, fmt.Sprintf("%s-%d", c.name, i), snap, "row", volumeSize)
		if made != nil {
			return made
		}
		defer func() { err = errors.Join(err, d.remove(context.WithoutCancel(ctx))) }()
		restored = append(restored, d)
	}
	if err := w.load.Judge(restored, c.bounds); err != nil {
		return fmt.Errorf("cut %s: %w", c.name, err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.restored++; w.restored%100 == 0 {
		fmt.Printf("%d of %d cuts judged\n", w.restored, *cuts)
	}
	return nil
}

func (w *world) remove(ctx context.Context, c cut) error {
	_, err := w.plugin.group.DeleteVolumeGroupSnapshot(ctx, &csi.DeleteVolumeGroupSnapshotRequest{
		GroupSnapshotId: c.group.GetGroupSnapshotId(), SnapshotIds: c.snapshots,
	})
	return err
}

// underLoad runs do beside the writers; the first error ends both.
func (w *world) underLoad(ctx context.Context, do func(context.Context) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	writing, stop := context.WithCancel(ctx)
	defer stop()
	written := make(chan error, 1)
	go func() {
		err := w.load.Run(writing)
		if err != nil {
			cancel()
		}
		written <- err
	}()
	err := do(ctx)
	stop()
	return errors.Join(<-written, err)
}

// TestGroupCuts: of every cut over eight volumes under writers that order their writes across them, what is restored is a prefix of every writer's order.
// That the judge sees what is none, it shows first.
func TestGroupCuts(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute+time.Duration(*cuts)*3*time.Second)
	defer cancel()
	w := newWorld(ctx, t)
	begun := time.Now()
	if err := w.underLoad(ctx, func(ctx context.Context) error {
		if err := w.oneByOne(ctx); err != nil {
			return err
		}
		return w.cutMany(ctx)
	}); err != nil {
		t.Fatal(err)
	}
	final := w.load.Returned()
	var records uint64
	for _, n := range final {
		records += n
	}
	var live []block.Device
	for _, d := range w.disks {
		live = append(live, d)
	}
	if err := w.load.Judge(live, Bounds{Least: final, Most: final}); err != nil {
		t.Errorf("the volumes themselves: %v", err)
	}
	if err := w.removeDisks(ctx); err != nil {
		t.Error(err)
	}
	if err := w.whole(ctx); err != nil {
		t.Error(err)
	}
	slices.Sort(w.took)
	at := func(q float64) float64 { return w.took[int(q*float64(len(w.took)-1))].Seconds() * 1e3 }
	fmt.Printf("group_cuts %d (bar %d)\n", w.restored, *cuts)
	fmt.Printf("group_records_written %d in %.0f s\n", records, time.Since(begun).Seconds())
	fmt.Printf("group_cut_milliseconds median %.1f, 99th percentile %.1f, longest %.1f\n", at(0.5), at(0.99), at(1))
	if w.restored != *cuts {
		t.Errorf("%d cuts were judged, want %d", w.restored, *cuts)
	}
}

// cutMany cuts groups, one after the other, and has them judged and deleted meanwhile.
func (w *world) cutMany(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	taken := make(chan cut)
	errs := make(chan error, judges+1)
	var wg sync.WaitGroup
	for range judges {
		wg.Go(func() {
			for c := range taken {
				if err := errors.Join(w.judge(ctx, c), w.remove(ctx, c)); err != nil {
					errs <- err
					cancel()
					return
				}
			}
		})
	}
	for i := range *cuts {
		c, err := w.cut(ctx, fmt.Sprint("cut-", i))
		if err == nil {
			select {
			case taken <- c:
				continue
			case <-ctx.Done():
				err = ctx.Err()
			}
		}
		errs <- err
		break
	}
	close(taken)
	wg.Wait()
	close(errs)
	var all []error
	for err := range errs {
		all = append(all, err)
	}
	return errors.Join(all...)
}

// whole waits until nothing is left in the pool and has it checked.
func (w *world) whole(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := stack.Until(ctx, "the pool is empty", func() error {
		p, err := w.stack.Engine.Pool(ctx, w.stack.Pool)
		if err == nil && (p.Volumes != 0 || p.Snapshots != 0 || p.Used != 0 || p.Jobs != 0) {
			err = fmt.Errorf("%d volumes, %d snapshots, %d bytes, %d jobs", p.Volumes, p.Snapshots, p.Used, p.Jobs)
		}
		return err
	})
	if err != nil {
		return err
	}
	r, err := w.stack.Engine.Check(ctx, w.stack.Pool)
	if err == nil && len(r.Problems) > 0 {
		err = errors.New(strings.Join(r.Problems, "; "))
	}
	return err
}

// oneByOne takes snapshots of the volumes one after the other, which are no cut over all of them: the judge has to say so.
func (w *world) oneByOne(ctx context.Context) (err error) {
	c := cut{name: "one-by-one", bounds: Bounds{Least: w.load.Returned()}}
	for i, d := range w.disks {
		resp, err := w.plugin.controller.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{Name: fmt.Sprint("single-", i), SourceVolumeId: d.id})
		if err != nil {
			return err
		}
		c.snapshots = append(c.snapshots, resp.GetSnapshot().GetSnapshotId())
		if err := w.writtenOn(ctx); err != nil {
			return err
		}
	}
	c.bounds.Most = w.load.Sent()
	if err := w.judge(ctx, c); err == nil || !strings.Contains(err.Error(), "no beginning of the order") {
		return fmt.Errorf("eight snapshots, one after the other, are judged as one cut: %w", err)
	}
	for _, snap := range c.snapshots {
		if _, err := w.plugin.controller.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: snap}); err != nil {
			return err
		}
	}
	return nil
}

// writtenOn waits until every writer has been at every volume again.
func (w *world) writtenOn(ctx context.Context) error {
	before := w.load.Returned()
	return stack.Until(ctx, "every writer has written on", func() error {
		for i, n := range w.load.Returned() {
			if n < before[i]+volumes {
				return fmt.Errorf("writer %d has not", i)
			}
		}
		return nil
	})
}

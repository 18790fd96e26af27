package volume_test

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/memory"
)

// counting counts what reaches the service, and lets a test stand in its way.
type counting struct {
	volume.Service
	creates, cuts atomic.Int32
	before        func(call string)
}

func (c *counting) Create(ctx context.Context, r volume.CreateRequest) (volume.Volume, error) {
	c.creates.Add(1)
	c.at("create")
	return c.Service.Create(ctx, r)
}

func (c *counting) CreateSnapshot(ctx context.Context, r volume.SnapshotRequest) (volume.Snapshot, error) {
	c.cuts.Add(1)
	c.at("cut")
	return c.Service.CreateSnapshot(ctx, r)
}

func (c *counting) Expand(ctx context.Context, id volume.VolumeID, r volume.Range) (volume.Volume, error) {
	c.at("expand")
	return c.Service.Expand(ctx, id, r)
}

func (c *counting) at(call string) {
	if c.before != nil {
		c.before(call)
	}
}

func TestIdempotentCreate(t *testing.T) {
	inner := &counting{Service: memory.New(memory.Config{})}
	s := volume.Idempotent(inner)
	src, err := s.Create(t.Context(), volume.CreateRequest{Name: "src"})
	if err != nil {
		t.Fatal(err)
	}
	r := volume.CreateRequest{Name: "v", Source: volume.Source{Volume: src.ID}}
	first, err := s.Create(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), src.ID); err != nil {
		t.Fatal(err)
	}
	for range 3 { // although the source is gone
		if again, err := s.Create(t.Context(), r); err != nil || again != first {
			t.Errorf("again: %+v, %v, want %+v", again, err, first)
		}
	}
	if n := inner.creates.Load(); n != 2 {
		t.Errorf("%d creates, want 2", n)
	}
	r.FSType = volume.FSXFS
	if _, err := s.Create(t.Context(), r); !errors.Is(err, volume.ErrExists) {
		t.Errorf("other parameters: %v", err)
	}
	if _, err := s.Create(t.Context(), volume.CreateRequest{}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("no name: %v", err)
	}
}

// TestIdempotentCreateRace is the case that somebody else makes the volume between the look and the creation.
func TestIdempotentCreateRace(t *testing.T) {
	backend := memory.New(memory.Config{})
	inner := &counting{Service: backend}
	var once sync.Once
	inner.before = func(string) {
		once.Do(func() {
			if _, err := backend.Create(context.Background(), volume.CreateRequest{Name: "v", FSType: volume.FSExt4}); err != nil {
				t.Error(err)
			}
		})
	}
	s := volume.Idempotent(inner)
	if v, err := s.Create(t.Context(), volume.CreateRequest{Name: "v", FSType: volume.FSExt4}); err != nil || v.ID != volume.VolumeIDOf("v") {
		t.Errorf("%+v, %v", v, err)
	}
	if _, err := s.Create(t.Context(), volume.CreateRequest{Name: "v"}); !errors.Is(err, volume.ErrExists) {
		t.Errorf("other parameters: %v", err)
	}
}

func TestIdempotentSnapshot(t *testing.T) {
	inner := &counting{Service: memory.New(memory.Config{})}
	s := volume.Idempotent(inner)
	a, _ := s.Create(t.Context(), volume.CreateRequest{Name: "a"})
	b, _ := s.Create(t.Context(), volume.CreateRequest{Name: "b"})
	first, err := s.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "s", Source: a.ID})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "s", Source: b.ID}); !errors.Is(err, volume.ErrExists) {
		t.Errorf("other source: %v", err)
	}
	for range 2 {
		if err := s.Delete(t.Context(), a.ID); err != nil {
			t.Fatal(err)
		}
		again, err := s.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "s", Source: a.ID})
		if err != nil || again != first {
			t.Errorf("again: %+v, %v, want the first cut %+v", again, err, first)
		}
	}
	if n := inner.cuts.Load(); n != 1 {
		t.Errorf("%d cuts, want 1", n)
	}
	for range 2 {
		if err := s.DeleteSnapshot(t.Context(), first.ID); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	if _, err := s.CreateSnapshot(t.Context(), volume.SnapshotRequest{Source: a.ID}); !errors.Is(err, volume.ErrInvalid) {
		t.Errorf("no name: %v", err)
	}
}

func TestSerialized(t *testing.T) {
	inner := &counting{Service: memory.New(memory.Config{})}
	s := volume.Open(inner)
	v, err := s.Create(t.Context(), volume.CreateRequest{Name: "v"})
	if err != nil {
		t.Fatal(err)
	}
	entered, leave := make(chan struct{}), make(chan struct{})
	inner.before = func(call string) {
		if call == "expand" {
			close(entered)
			<-leave
		}
	}
	done := make(chan error)
	go func() {
		_, err := s.Expand(context.Background(), v.ID, volume.Range{Required: 2 << 30})
		done <- err
	}()
	<-entered
	for name, call := range map[string]func() error{
		"create": func() error { _, err := s.Create(t.Context(), volume.CreateRequest{Name: "v"}); return err },
		"delete": func() error { return s.Delete(t.Context(), v.ID) },
		"expand": func() error { _, err := s.Expand(t.Context(), v.ID, volume.Range{}); return err },
		"attach": func() error { _, err := s.Attach(t.Context(), v.ID, false); return err },
		"detach": func() error { return s.Detach(t.Context(), v.ID) },
		"mark":   func() error { return s.MarkFormat(t.Context(), v.ID, volume.FormatDone) },
	} {
		if err := call(); !errors.Is(err, volume.ErrPending) {
			t.Errorf("%s meanwhile: %v", name, err)
		}
	}
	for name, call := range map[string]func() error{
		"get":  func() error { _, err := s.Get(t.Context(), v.ID); return err },
		"list": func() error { _, _, err := s.List(t.Context(), volume.Page[volume.VolumeID]{}); return err },
		"cut": func() error {
			_, err := s.CreateSnapshot(t.Context(), volume.SnapshotRequest{Name: "s", Source: v.ID})
			return err
		},
		"other": func() error { return s.Delete(t.Context(), volume.VolumeIDOf("other")) },
	} {
		if err := call(); err != nil {
			t.Errorf("%s meanwhile: %v", name, err)
		}
	}
	close(leave)
	if err := <-done; err != nil {
		t.Error(err)
	}
	if err := s.Delete(t.Context(), v.ID); err != nil {
		t.Errorf("delete afterwards: %v", err)
	}
}

// TestConcurrentCreates is many callers with a few names at once: each name is made once, and every caller gets it or is told to ask again.
func TestConcurrentCreates(t *testing.T) {
	inner := &counting{Service: memory.New(memory.Config{Size: 1 << 40})}
	s := volume.Open(inner)
	const names, callers = 5, 20
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var wg sync.WaitGroup
	for i := range names * callers {
		wg.Go(func() {
			r := volume.CreateRequest{Name: fmt.Sprint("v", i%names)}
			v, err := s.Create(ctx, r)
			for errors.Is(err, volume.ErrPending) && ctx.Err() == nil {
				v, err = s.Create(ctx, r)
			}
			if err != nil || v.ID != r.ID() {
				t.Errorf("%+v, %v", v, err)
			}
		})
	}
	wg.Wait()
	if n := inner.creates.Load(); n != names {
		t.Errorf("%d creates, want %d", n, names)
	}
}

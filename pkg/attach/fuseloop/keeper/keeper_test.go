package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// running is a keeper in this process.
type running struct {
	stop context.CancelFunc
	done chan error
}

// start runs a keeper and waits until it answers.
func start(t *testing.T, socket string) *running {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &running{stop: cancel, done: make(chan error, 1)}
	ready := make(chan struct{})
	go func() { r.done <- Serve(ctx, socket, func() { close(ready) }, nil) }()
	t.Cleanup(cancel)
	select {
	case <-ready:
	case err := <-r.done:
		t.Fatalf("keeper did not start: %v", err)
	case <-time.After(30 * time.Second):
		t.Fatal("keeper did not start in 30 s")
	}
	return r
}

func (r *running) wait(t *testing.T) error {
	t.Helper()
	select {
	case err := <-r.done:
		return err
	case <-time.After(30 * time.Second):
		t.Fatal("keeper did not end in 30 s")
		return nil
	}
}

func socketIn(t *testing.T) string { return filepath.Join(t.TempDir(), "keeper.sock") }

// content makes a file whose copies can be told by what is in it.
func content(t *testing.T, text string) *os.File {
	t.Helper()
	f, err := os.CreateTemp(t.TempDir(), "kept")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = f.Close() })
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
	return f
}

func expectRecord(t *testing.T, c *Client, id, data string, texts ...string) {
	t.Helper()
	r, files, err := c.Get(t.Context(), id)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll(files)
	if r.ID != id || string(r.Data) != data || len(files) != len(texts) {
		t.Fatalf("got record %q %q with %d files; want %q %q with %d", r.ID, r.Data, len(files), id, data, len(texts))
	}
	for i, text := range texts {
		got := make([]byte, len(text))
		if _, err := files[i].ReadAt(got, 0); err != nil || string(got) != text {
			t.Errorf("file %d of %q holds %q (%v); want %q", i, id, got, err, text)
		}
	}
}

func TestRecords(t *testing.T) {
	socket := socketIn(t)
	start(t, socket)
	c, ctx := NewClient(socket), t.Context()
	if err := c.Put(ctx, Record{"a", []byte("1")}, true, content(t, "A")); err != nil {
		t.Fatal(err)
	}
	if err := c.Put(ctx, Record{"b", []byte("2")}, true, content(t, "B"), content(t, "BB")); err != nil {
		t.Fatal(err)
	}
	if err := c.Put(ctx, Record{"a", nil}, true, content(t, "X")); !errors.Is(err, ErrExists) {
		t.Errorf("exclusive put of a taken id: %v; want ErrExists", err)
	}
	expectRecord(t, c, "a", "1", "A")
	expectRecord(t, c, "b", "2", "B", "BB")
	if err := c.Update(ctx, Record{"b", []byte("3")}); err != nil {
		t.Fatal(err)
	}
	expectRecord(t, c, "b", "3", "B", "BB")
	if err := c.Put(ctx, Record{"a", []byte("4")}, false, content(t, "AA")); err != nil {
		t.Fatal(err)
	}
	expectRecord(t, c, "a", "4", "AA")
	all, err := c.List(ctx)
	if err != nil || len(all) != 2 || all[0].ID != "a" || all[1].ID != "b" || string(all[1].Data) != "3" {
		t.Errorf("list: %v, %v", all, err)
	}
	if err := c.Delete(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if _, _, err := c.Get(ctx, "a"); !errors.Is(err, ErrNotFound) {
		t.Errorf("get of a deleted record: %v; want ErrNotFound", err)
	}
	if err := c.Put(ctx, Record{ID: "none"}, true); !errors.Is(err, ErrProtocol) {
		t.Errorf("put without descriptors: %v; want ErrProtocol", err)
	}
	if err := c.Put(ctx, Record{ID: "big", Data: make([]byte, MaxDataLen+1)}, true, content(t, "")); !errors.Is(err, ErrProtocol) {
		t.Errorf("put of too much data: %v; want ErrProtocol", err)
	}
}

func TestHandover(t *testing.T) {
	socket := socketIn(t)
	old := start(t, socket)
	c := NewClient(socket)
	const n = 300
	for i := range n {
		if err := c.Put(t.Context(), Record{fmt.Sprint(i), fmt.Append(nil, "data ", i)}, true, content(t, fmt.Sprint("file ", i))); err != nil {
			t.Fatal(err)
		}
	}
	watching, gone := make(chan struct{}), make(chan error, 1)
	go func() { gone <- c.Watch(context.Background(), func() { close(watching) }) }()
	<-watching

	// Clients that come while it changes hands are answered by one or the other, or may try again.
	var wg sync.WaitGroup
	ctx, cancel := context.WithCancel(t.Context())
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				_, files, err := c.Get(t.Context(), "7")
				closeAll(files)
				if errors.Is(err, ErrNotFound) {
					t.Errorf("a record was missing during the handover: %v", err)
				}
			}
		})
	}
	start(t, socket)
	if err := old.wait(t); !errors.Is(err, ErrHandedOver) {
		t.Errorf("old keeper ended with %v; want ErrHandedOver", err)
	}
	cancel()
	wg.Wait()
	select {
	case err := <-gone:
		if err != nil {
			t.Errorf("watch: %v", err)
		}
	case <-time.After(10 * time.Second):
		t.Error("the watcher did not hear of the handover")
	}
	for i := range n {
		expectRecord(t, c, fmt.Sprint(i), fmt.Sprint("data ", i), fmt.Sprint("file ", i))
	}
}

func TestHandoverThatFailsChangesNothing(t *testing.T) {
	socket := socketIn(t)
	start(t, socket)
	c := NewClient(socket)
	for i := range 20 {
		if err := c.Put(t.Context(), Record{fmt.Sprint(i), []byte("x")}, true, content(t, "y")); err != nil {
			t.Fatal(err)
		}
	}
	for stage := range 3 {
		successor, err := dial(t.Context(), socket)
		if err != nil {
			t.Fatal(err)
		}
		if err := successor.send(message{op: opHandover}); err != nil {
			t.Fatal(err)
		}
		if stage > 0 {
			s := newServer(0)
			if err := s.collect(successor); err != nil {
				t.Fatal(err)
			}
			s.drop()
		}
		if stage > 1 {
			if err := successor.send(message{op: opDone}); err != nil { // not a confirmation
				t.Fatal(err)
			}
			m, _, err := successor.receive(exchange)
			if err != nil || m.op != opError {
				t.Errorf("answer to a wrong confirmation: %v, %v; want an error", m.op, err)
			}
		}
		_ = successor.Close()
		expectRecord(t, c, "7", "x", "y")
	}
}

func TestRestartAfterDeath(t *testing.T) {
	socket := socketIn(t)
	old := start(t, socket)
	if err := NewClient(socket).Put(t.Context(), Record{ID: "a"}, true, content(t, "A")); err != nil {
		t.Fatal(err)
	}
	old.stop()
	if err := old.wait(t); !errors.Is(err, context.Canceled) {
		t.Fatalf("stopped keeper: %v", err)
	}
	start(t, socket) // the dead one's socket file is in the way
	all, err := NewClient(socket).List(t.Context())
	if err != nil || len(all) != 0 {
		t.Errorf("a fresh keeper has %v, %v", all, err)
	}
}

func TestRefusesAnotherUser(t *testing.T) {
	socket := socketIn(t)
	s := newServer(uint32(os.Geteuid()) + 1)
	if err := s.start(t.Context(), socket); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.serve(ctx) }()
	if _, err := NewClient(socket).List(t.Context()); !errors.Is(err, ErrPeer) {
		t.Errorf("list as another user: %v; want ErrPeer", err)
	}
	cancel()
	<-done
}

func TestNoKeeper(t *testing.T) {
	if _, err := NewClient(socketIn(t)).List(t.Context()); err == nil {
		t.Error("list without a keeper succeeded")
	}
}

func FuzzDecode(f *testing.F) {
	for _, m := range []message{{}, {op: opPut, flags: flagExclusive, id: "id", data: []byte("data")}, {op: opRecord, data: make([]byte, MaxDataLen)}} {
		b, err := m.encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decode(b)
		if err != nil {
			return
		}
		again, err := m.encode()
		if err != nil || !bytes.Equal(again, b) {
			t.Errorf("%x decodes to %+v, which encodes to %x (%v)", b, m, again, err)
		}
	})
}

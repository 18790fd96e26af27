package ring

import (
	"context"
	"encoding/binary"
	"io"
	"os"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// TestMain becomes the victim of TestKill when it is started with a ring's folder in the environment.
func TestMain(m *testing.M) {
	if dir := os.Getenv("RING_TEST_VICTIM"); dir != "" {
		if err := victim(dir); err != nil {
			_, _ = io.WriteString(os.Stderr, err.Error()+"\n")
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

var killConfig = Config{PoolID: [16]byte{4}, BootID: [16]byte{5}, Bytes: 64 << 10, AnyFileSystem: true}

// victim appends for ever from several goroutines, tells each sequence to its standard output once the append returned, and retires only the far past.
func victim(dir string) error {
	c := killConfig
	c.Dir = dir
	r, err := Open(c, 1)
	if err != nil {
		return err
	}
	if _, err := r.Replay(0); err != nil {
		return err
	}
	var mu sync.Mutex
	const idle = ^uint64(0)
	next, current := uint64(0), [4]uint64{idle, idle, idle, idle}
	fails := make(chan error)
	appendOne := func(w int) error {
		for !r.TryReserve(1) {
			if err := r.Wait(context.Background(), 1); err != nil {
				return err
			}
		}
		mu.Lock()
		next++
		seq := next
		current[w] = seq
		mu.Unlock()
		if err := r.Append(entry(seq)); err != nil {
			return err
		}
		if err := binary.Write(os.Stdout, binary.LittleEndian, seq); err != nil {
			return err
		}
		mu.Lock()
		defer mu.Unlock()
		current[w] = idle
		if next > 900 {
			r.Retire(min(next-900, slices.Min(current[:])-1))
		}
		return nil
	}
	for w := range current {
		go func() {
			for {
				if err := appendOne(w); err != nil {
					fails <- err
				}
			}
		}()
	}
	return <-fails
}

// TestKill kills a process with SIGKILL in the middle of its appends: everything it acknowledged over the pipe is replayed.
func TestKill(t *testing.T) {
	for range 20 {
		c := killConfig
		c.Dir = testConfig(t).Dir
		r, err := Create(c, 1)
		must(t, err)
		must(t, r.Close())
		acked := runVictim(t, c.Dir)
		r, err = Open(c, 1)
		must(t, err)
		highest := uint64(0)
		for _, seq := range acked {
			highest = max(highest, seq)
		}
		// 900 back from the highest acknowledged: what the victim cannot have retired, but for the few it had handed out and not acknowledged.
		after := uint64(0)
		if highest > 890 {
			after = highest - 890
		}
		got, err := r.Replay(after)
		must(t, err)
		must(t, r.Close())
		found := map[uint64]bool{}
		for _, e := range got {
			found[e.Sequence] = true
			want := entry(e.Sequence)
			want.Epoch = 1
			if e != want {
				t.Fatalf("replayed %+v, want %+v", e, want)
			}
		}
		for _, seq := range acked {
			if seq > after && !found[seq] {
				t.Fatalf("sequence %d was acknowledged and is not replayed (%d acknowledged, highest %d)", seq, len(acked), highest)
			}
		}
	}
}

func runVictim(t *testing.T, dir string) (acked []uint64) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "RING_TEST_VICTIM="+dir)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	must(t, err)
	must(t, cmd.Start())
	timer := time.AfterFunc(time.Minute, func() { _ = cmd.Process.Kill() })
	defer timer.Stop()
	for {
		var seq uint64
		if err := binary.Read(out, binary.LittleEndian, &seq); err != nil {
			break
		}
		if acked = append(acked, seq); len(acked) == 3000 {
			must(t, cmd.Process.Signal(syscall.SIGKILL)) // and go on reading what it had told before it died
		}
	}
	_ = cmd.Wait()
	if len(acked) < 3000 {
		t.Fatalf("the victim ended by itself after %d appends", len(acked))
	}
	return acked
}

package main

import (
	"bytes"
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// TestProgress drives the clock by hand.
func TestProgress(t *testing.T) {
	for terminal, want := range map[bool]string{
		true:  "\r\x1b[Kmaking coffee… 1 s\r\x1b[Kmaking coffee… 2 s\r\x1b[K",
		false: "making coffee…\n",
	} {
		tick := make(chan time.Time)
		var errs bytes.Buffer
		s := &session{app: &app{err: &errs, terminal: terminal, after: func(time.Duration) <-chan time.Time { return tick }}}
		leave, sentinel := make(chan struct{}), errors.New("cold")
		go func() {
			tick <- time.Time{}
			tick <- time.Time{}
			close(leave)
		}()
		err := s.wait("making coffee", func() error {
			<-leave
			return sentinel
		})
		if err != sentinel || errs.String() != want {
			t.Errorf("terminal %v: %v, printed %q, want %q", terminal, err, errs.String(), want)
		}
	}
}

func TestTimeout(t *testing.T) {
	s := newStage(t)
	s.engine.Block = func(ctx context.Context, op, _ string) {
		if op == "CreatePool" {
			<-ctx.Done()
		}
	}
	_, errs, code := s.run(t, "pool", "create", "slow", "--dir", "/slow", "--timeout", "30ms")
	if code != exitError || !strings.Contains(errs, "deadline") {
		t.Errorf("exit %d: %s", code, errs)
	}
}

func TestRoundsUp(t *testing.T) {
	s := newStage(t)
	s.run(t, "pool", "create", "fast", "--dir", "/pools/fast")
	if out, errs, _ := s.run(t, "volume", "create", "v", "--size", "1.5G"); !strings.Contains(out, "1.4Gi") {
		t.Errorf("%s%s", out, errs)
	}
	if v, err := s.pool(t).Volume("v"); err != nil || v.Size != 1431<<20 {
		t.Errorf("%+v, %v", v, err)
	}
}

func TestDamageIsAnError(t *testing.T) {
	s := newStage(t)
	s.run(t, "pool", "create", "fast", "--dir", "/pools/fast")
	s.engine.Report = &engine.CheckReport{Problems: []string{"block 7 of segment 0 belongs to nobody"}, Volumes: 1}
	out, errs, code := s.run(t, "pool", "check")
	if code != exitError || !strings.Contains(out, "problem: block 7") || !strings.Contains(errs, "damaged: 1 problems") {
		t.Errorf("exit %d: %s%s", code, out, errs)
	}
}

// TestCheckOffline: a pool of the real engine, while it is open and after.
func TestCheckOffline(t *testing.T) {
	dir := t.TempDir()
	usage, err := fsys.OS().Usage(dir)
	if err != nil {
		t.Fatal(err)
	}
	if usage.Type != "ext4" && usage.Type != "xfs" {
		t.Skipf("needs xfs or ext4: the folder for temporary files is on %s; set TMPDIR", usage.Type)
	}
	rings, err := os.MkdirTemp("/dev/shm", "rowanctl-test-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(rings) })
	p, err := engine.CreatePool(t.Context(), engine.PoolSpec{Name: "fast", Directory: dir, Size: engine.MinPoolSize}, engine.Options{RingDir: rings})
	if err != nil {
		t.Fatal(err)
	}
	s := &stage{socket: "/nonexistent/engine.sock"}
	out, errs, code := s.run(t, "pool", "check", "--dir", dir)
	if code != exitError || !strings.Contains(errs, "open in another process") || !strings.Contains(errs, "hint: find the other engine") {
		t.Errorf("open: exit %d: %s%s", code, out, errs)
	}
	if err := p.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	out, errs, code = s.run(t, "pool", "check", "--dir", dir, "-o", "json")
	if code != exitOK || !strings.Contains(out, `"pool": "fast"`) || !strings.Contains(out, `"closedInOrder": true`) {
		t.Errorf("closed: exit %d: %s%s", code, out, errs)
	}
	out, errs, code = s.run(t, "pool", "check", "--dir", dir, "--repair", "--wait", "1s")
	if code != exitOK || !strings.Contains(out, "Repaired:               0 records") || !strings.Contains(out, "Problems:               0") {
		t.Errorf("repair of what is whole: exit %d: %s%s", code, out, errs)
	}
}

// TestHintsAreReachable: no hint stands behind one that always comes first.
func TestHintsAreReachable(t *testing.T) {
	for _, h := range hints {
		if got := hint(h.is); got != h.hint {
			t.Errorf("%v gets the hint %q", h.is, got)
		}
	}
	if hint(errors.New("of no kind")) != "" {
		t.Error("a hint for what nobody knows")
	}
}

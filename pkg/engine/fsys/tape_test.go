package fsys

import (
	"bytes"
	"testing"
)

// A sync vouches for what had returned when it began, and for nothing that came while it ran.
func TestSyncVouchesForWhatHadReturned(t *testing.T) {
	m := NewMem()
	f := prewritten(t, m, "/a", Create|Write|Direct)
	p := AlignedBuffer(sectorSize)
	copy(p, sector('a'))
	m.During(func(op Op, _ string) {
		if op != OpSync {
			return
		}
		m.During(nil)
		if _, err := f.WriteAt(p, 0); err != nil {
			t.Error(err)
		}
	})
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	lost := false
	for seed := range uint64(50) {
		g, err := m.CrashClone(newRand(seed)).Open("/a", 0)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, sectorSize)
		if _, err := g.ReadAt(got, 0); err != nil {
			t.Fatal(err)
		}
		lost = lost || !bytes.Equal(got, p)
	}
	if !lost {
		t.Fatal("a write that came while the sync ran is durable")
	}
}

// A tape makes every state again: names, contents, and what a power cut may leave of them.
func TestTape(t *testing.T) {
	m := NewMem()
	start, tape := m.Record()
	f := prewritten(t, m, "/a", Create|Write|Direct)
	m.Mark(7)
	p := AlignedBuffer(sectorSize)
	copy(p, sector('x'))
	if _, err := f.WriteAt(p, 0); err != nil {
		t.Fatal(err)
	}
	if err := m.MkdirAll("/d/e"); err != nil {
		t.Fatal(err)
	}
	if err := m.Rename("/a", "/d/e/b"); err != nil {
		t.Fatal(err)
	}
	player, marks := Play(start, tape), 0
	for s, ok := player.Next(); ok; s, ok = player.Next() {
		if s.Kind == StepMark && s.Operation == 7 {
			marks++
			if _, err := player.Mem.KillClone(nil).Stat("/a"); err != nil {
				t.Error(err)
			}
		}
	}
	if marks != 1 {
		t.Errorf("the mark was met %d times", marks)
	}
	for seed := range uint64(50) {
		for _, clone := range []func(*Mem) *Mem{
			func(m *Mem) *Mem { return m.CrashClone(newRand(seed)) }, func(m *Mem) *Mem { return m.KillClone(newRand(seed)) },
		} {
			if live, played := contentOf(clone(m), "/d/e/b"), contentOf(clone(player.Mem), "/d/e/b"); !bytes.Equal(live, played) {
				t.Fatalf("seed %d: the live one has %q, the played one %q", seed, live[:min(8, len(live))], played[:min(8, len(played))])
			}
		}
	}
}

func contentOf(m *Mem, name string) []byte {
	f, err := m.Open(name, 0)
	if err != nil {
		return nil
	}
	got := make([]byte, sectorSize)
	_, _ = f.ReadAt(got, 0)
	return got
}

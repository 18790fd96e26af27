package fsys

import (
	"errors"
	"io/fs"
	"testing"

	"golang.org/x/sys/unix"
)

func TestFault(t *testing.T) {
	m := NewMem()
	f := Fault(m, Rule{Op: OpWrite, Glob: "seg.*", After: 1, Times: 2, Err: unix.EIO})
	a, b := mustOpen(t, f, "/seg.0", Create|Write), mustOpen(t, f, "/other", Create|Write)
	for i, want := range []error{nil, unix.EIO, unix.EIO, nil} {
		if _, err := a.WriteAt([]byte("x"), int64(i)); !errors.Is(err, want) {
			t.Fatalf("write %d: %v, want %v", i, err, want)
		}
		mustWrite(t, b, []byte("x"), 0)
	}
	wantBytes(t, a, 0, []byte("x\x00\x00x"))

	f.Clear()
	f.Add(Rule{Op: OpSync, Err: unix.EIO, Late: true})
	f.Add(Rule{Op: OpOpen, Glob: "/*/x", Err: unix.ENOSPC})
	must(t, m.SyncDir("/"))
	wantIs(t, a.Sync(), unix.EIO)
	wantOutcomes(t, m, "/seg.0", 0, "") // it was done
	if got := outcomes(t, m, "/other", 0); len(got) != 1 {
		t.Fatal(got)
	}
	must(t, f.MkdirAll("/d"))
	_, err := f.Open("/d/x", Create|Write)
	wantIs(t, err, unix.ENOSPC)
	wantIs(t, second(m.Stat("/d/x")), fs.ErrNotExist)

	f.Clear()
	asked := 0
	f.Add(Rule{Op: OpPunch, Err: unix.EIO, When: func(c Call) bool { asked++; return c.Off == 4096 }})
	f.Add(Rule{Op: OpTruncate, When: func(Call) bool { asked++; return false }})
	must(t, a.Punch(0, 4096))
	wantIs(t, a.Punch(4096, 4096), unix.EIO)
	must(t, a.Truncate(0))
	if asked != 3 {
		t.Fatalf("asked %d times, want 3", asked)
	}
}

func TestRecord(t *testing.T) {
	r := Record(Fault(NewMem(), Rule{Op: OpSync, Glob: "b", Err: unix.EIO}))
	must(t, r.MkdirAll("/pool"))
	a := mustOpen(t, r, "/pool/a", Create|Write|Direct)
	mustOpen(t, r, "/pool/a", 0)
	mustWrite(t, a, AlignedBuffer(4096), 8192)
	if _, err := a.WriteAtDurable(AlignedBuffer(512), 0); err != nil {
		t.Fatal(err)
	}
	must(t, a.Sync())
	must(t, a.Allocate(0, 1<<20))
	must(t, a.Punch(0, 4096))
	must(t, a.Truncate(4096))
	must(t, r.SyncDir("/pool"))
	must(t, r.Rename("/pool/a", "/pool/b"))
	wantIs(t, mustOpen(t, r, "/pool/b", Create|Write).Sync(), unix.EIO)
	must(t, r.Remove("/pool/b"))
	const want = `mkdir /pool
open a create write direct
write a 8192+4096
write-durable a 0+512
sync a
allocate a 0+1048576
punch a 0+4096
truncate a 4096
sync-dir /pool
rename a b
open b create write
sync b: sync b: input/output error
remove b
`
	if got := r.Text("/pool"); got != want {
		t.Fatalf("got:\n%s\nwant:\n%s", got, want)
	}
	r.Reset()
	if len(r.Events()) != 0 {
		t.Fatal("Reset left events")
	}
}

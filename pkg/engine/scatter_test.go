package engine

import (
	"bytes"
	"errors"
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

func TestSideBySide(t *testing.T) {
	for _, n := range []int{1, 2, 15, 16, 17, 256} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			done := make([]atomic.Int32, n)
			failure := errors.New("one part")
			err := sideBySide(n, func(from, to int) error {
				for i := from; i < to; i++ {
					done[i].Add(1)
				}
				if from <= n/2 && n/2 < to {
					return failure
				}
				return nil
			})
			if err != failure {
				t.Fatal(err)
			}
			for i := range done {
				if done[i].Load() != 1 {
					t.Fatalf("%d was done %d times", i, done[i].Load())
				}
			}
		})
	}
}

// A large write over blocks that the head owns one by one, and over some that it does not, goes to all its places at once; so does one that it owns all of.
// One place that cannot be written fails it.
func TestScatteredWrites(t *testing.T) {
	p, disk := memPool(t)
	v := p.volume("v", 4<<20)
	want := fill(t, v, 1)
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	write := func(b byte, off, n int) error {
		copy(want[off:], bytes.Repeat([]byte{b}, n))
		_, err := v.WriteAt(want[off:off+n], int64(off))
		return err
	}
	for i := 0; i < 256; i += 2 {
		must(t, write(2, i*BlockSize, BlockSize))
	}
	for b, part := range map[byte][2]int{3: {512, 1 << 20}, 4: {0, 1<<20 + 512}} {
		// The first is held until there is another.
		var under atomic.Int32
		second := make(chan struct{})
		disk.Add(fsys.Rule{Op: fsys.OpWrite, Glob: "*.seg", Times: 2, When: func(fsys.Call) bool {
			if under.Add(1) == 2 {
				close(second)
			}
			<-second
			return true
		}})
		eventually(t, "a scattered write", func() {
			if err := write(b, part[0], part[1]); err != nil {
				t.Error(err)
			}
		})
		disk.Clear()
		expect(t, v, want)
	}
	p.check()
	broken := errors.New("one bad place")
	disk.Add(fsys.Rule{Op: fsys.OpWrite, Glob: "*.seg", After: 20, Times: 1, Err: broken})
	if err := write(5, 512, 1<<20); !errors.Is(err, broken) {
		t.Fatalf("a write to a bad place: %v", err)
	}
	disk.Clear()
	must(t, write(6, 0, 1<<20+512)) // all of it: of the one that failed any part may be there
	expect(t, v, want)
	p.check()
}

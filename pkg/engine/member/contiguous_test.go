package member

import (
	"bytes"
	"sync"
	"testing"
	"unsafe"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// pointers notes where the memory of writes lies.
type pointers struct {
	fsys.File
	mu   sync.Mutex
	seen []*byte
}

func (p *pointers) WriteAt(b []byte, off int64) (int, error) {
	p.mu.Lock()
	p.seen = append(p.seen, unsafe.SliceData(b))
	p.mu.Unlock()
	return p.File.WriteAt(b, off)
}

// Large writes go out of contiguous memory, small ones and those that find none free out of their own; what is written is the same.
func TestLargeWritesAreContiguous(t *testing.T) {
	m := mustCreate(t, fsys.OS(), testSpec(tempMember(t)))
	must(t, m.EnsureSegment(0))
	must(t, m.Reserve(0, 0, 4*ioBytes/BlockSize))
	s, err := m.segment(0)
	must(t, err)
	file := &pointers{File: s.file}
	s.file = file

	var taken [][]byte
	for b := takeContiguous(); b != nil; b = takeContiguous() {
		taken = append(taken, b)
	}
	if len(taken) != contiguousBuffers {
		t.Fatalf("%d buffers, want %d", len(taken), contiguousBuffers)
	}
	large := bytes.Repeat([]byte("0123456789abcdef"), ioBytes/16)
	data := fsys.AlignedBuffer(ioBytes)
	copy(data, large)
	check := func(n int, want *byte) {
		t.Helper()
		must(t, m.WriteAt(data[:n], 0, 0))
		if got := file.seen[len(file.seen)-1]; got != want {
			t.Errorf("a write of %d bytes went out of %p, want %p", n, got, want)
		}
		back := fsys.AlignedBuffer(n)
		must(t, m.ReadAt(back, 0, 0))
		if !bytes.Equal(back, large[:n]) {
			t.Errorf("a write of %d bytes reads differently", n)
		}
	}
	check(ioBytes, unsafe.SliceData(data))
	giveContiguous(taken[0])
	check(ioBytes, unsafe.SliceData(taken[0]))
	check(contiguousFrom, unsafe.SliceData(taken[0]))
	check(contiguousFrom-BlockSize, unsafe.SliceData(data))
	for _, b := range taken[1:] {
		giveContiguous(b)
	}
	if b := takeContiguous(); b == nil {
		t.Error("the buffers were not given back")
	} else {
		giveContiguous(b)
	}
}

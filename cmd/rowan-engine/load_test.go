package main

import (
	"encoding/binary"
	"math/rand/v2"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

const (
	loadWriters = 4
	loadBlock   = 4096
)

// load writes numbered blocks to a device, each writer to its own, past the page cache, and knows what must be read back. Any error ends the test.
type load struct {
	t      *testing.T
	file   *os.File
	blocks int
	stop   chan struct{}
	wg     sync.WaitGroup
	done   atomic.Int64
	failed atomic.Pointer[error]
	wrote  [loadWriters]map[int]uint64 // by block: the number in it
}

func newLoad(t *testing.T, device string, size int64) *load {
	t.Helper()
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_DIRECT, 0)
	if err != nil {
		t.Fatal(err)
	}
	l := &load{t: t, file: f, blocks: int(size / loadBlock), stop: make(chan struct{})}
	t.Cleanup(l.close)
	for i := range loadWriters {
		l.wrote[i] = map[int]uint64{}
		l.wg.Go(func() { l.write(i) })
	}
	return l
}

// aligned is memory for direct I/O.
func aligned(t *testing.T) []byte {
	t.Helper()
	b, err := unix.Mmap(-1, 0, loadBlock, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		t.Error(err)
	}
	return b
}

func (l *load) write(writer int) {
	buf := aligned(l.t)
	defer unix.Munmap(buf)
	rnd := rand.New(rand.NewPCG(1, uint64(writer)))
	for n := uint64(1); ; n++ {
		select {
		case <-l.stop:
			return
		default:
		}
		block := rnd.IntN(l.blocks/loadWriters)*loadWriters + writer
		for i := 0; i < loadBlock; i += 16 {
			binary.LittleEndian.PutUint64(buf[i:], uint64(block))
			binary.LittleEndian.PutUint64(buf[i+8:], n)
		}
		if _, err := l.file.WriteAt(buf, int64(block)*loadBlock); err != nil {
			l.failed.Store(&err)
			return
		}
		l.wrote[writer][block] = n
		if n%64 == 0 {
			if err := l.file.Sync(); err != nil {
				l.failed.Store(&err)
				return
			}
		}
		l.done.Add(1)
	}
}

// progress waits until a few hundred more writes were answered.
func (l *load) progress() {
	l.t.Helper()
	want := l.done.Load() + 300
	deadline := time.NewTimer(60 * time.Second)
	defer deadline.Stop()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for l.done.Load() < want {
		if err := l.failed.Load(); err != nil {
			l.t.Fatalf("I/O error on the device: %v", *err)
		}
		select {
		case <-tick.C:
		case <-deadline.C:
			l.t.Fatal("the device answers nothing for 60 s")
		}
	}
}

// verify stops writing and reads everything back.
func (l *load) verify() {
	l.t.Helper()
	close(l.stop)
	l.wg.Wait()
	l.stop = nil
	if err := l.failed.Load(); err != nil {
		l.t.Fatalf("I/O error on the device: %v", *err)
	}
	buf := aligned(l.t)
	defer unix.Munmap(buf)
	for _, wrote := range l.wrote {
		for block, n := range wrote {
			if _, err := l.file.ReadAt(buf, int64(block)*loadBlock); err != nil {
				l.t.Fatal(err)
			}
			for i := 0; i < loadBlock; i += 16 {
				if b, got := binary.LittleEndian.Uint64(buf[i:]), binary.LittleEndian.Uint64(buf[i+8:]); b != uint64(block) || got != n {
					l.t.Fatalf("block %d at byte %d has number %d of block %d, %d was written", block, i, got, b, n)
				}
			}
		}
	}
	l.t.Logf("%d writes answered and read back", l.done.Load())
}

func (l *load) close() {
	if l.file == nil {
		return
	}
	if l.stop != nil {
		close(l.stop)
		l.wg.Wait()
		l.stop = nil
	}
	l.file.Close()
	l.file = nil
}

func deviceSize(t *testing.T, device string) int64 {
	t.Helper()
	f, err := os.Open(device)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	size, err := f.Seek(0, 2)
	if err != nil {
		t.Fatal(err)
	}
	return size
}

package engine

import (
	"bytes"
	"errors"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// forget makes a page be read from the store again, as when it was evicted.
func (p *pages) forget(m *mapping, page uint32) {
	k := m.key(page)
	s := p.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cache.Drop(k)
}

// The commit that was to give the head the old place of what a snapshot keeps fails, when it shows in the store already. A second writer of the block,
// who has waited for the first, must not take the store's word for it: the snapshot's content is at the old place alone that is durable.
func TestFailedCopyCommitLeavesSnapshotAlone(t *testing.T) {
	for what, part := range map[string]int64{"block": BlockSize, "sector": sectorSize} {
		t.Run(what, func(t *testing.T) {
			p, disk := memPool(t)
			v := p.cowVolume("v", 1<<20)
			s, err := p.OpenSnapshot(t.Context(), "v-s")
			must(t, err)
			want := readAll(t, s)
			p.quiet()
			held, fail := make(chan struct{}), make(chan struct{})
			var once sync.Once
			disk.Add(fsys.Rule{Op: fsys.OpWriteDurable, Glob: "*.log", Err: unix.EIO, When: func(fsys.Call) bool {
				once.Do(func() { close(held) })
				<-fail
				return true
			}})
			b := bytes.Repeat([]byte{0xee}, BlockSize)
			wrote := make(chan error, 2)
			write := func() { _, err := v.WriteAt(b[:part], 5*BlockSize); wrote <- err }
			go write()
			<-held // the move shows in the store and is not durable
			p.pages.forget(&v.mapping, 0)
			go write()
			until(t, "both writes are admitted", func() bool {
				v.gate.mu.Lock()
				defer v.gate.mu.Unlock()
				return v.gate.inside == 2
			})
			close(fail)
			for range 2 {
				if err := <-wrote; !errors.Is(err, ErrFailed) && !errors.Is(err, errDead) {
					t.Errorf("a write to a failed pool: %v", err)
				}
			}
			if !bytes.Equal(readAll(t, s), want) {
				t.Error("the snapshot has changed")
			}
		})
	}
}

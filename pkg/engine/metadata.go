package engine

import (
	"errors"
	"fmt"
	"io"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"

	"github.com/rowan-csi/rowan/pkg/engine/member"
	"github.com/rowan-csi/rowan/pkg/engine/metafs"
)

// metadata is the pool's metadata store, on whichever member it is. While it moves to another member (metamove.go) whoever reads goes on: an iterator, a
// snapshot and a value keep the Pebble that they began with, and each shows the moment of its beginning, as Pebble's own do. What begins after the switch
// reads the new one. So nobody needs to know of a move but the committer, who alone writes and who makes the switch.
type metadata struct {
	dead chan struct{} // closed, once, when the Pebble in use met an error that it cannot live with

	mu   sync.RWMutex // held for reading while a read begins, and for writing by the switch
	at   *metaStore   // the committer may read it without mu
	once sync.Once    // of dead
	past metafs.Counts
}

// metaStore is one open Pebble.
type metaStore struct {
	db   *pebble.DB
	fs   *metafs.FS
	dead chan struct{} // closed when it met an error that it cannot live with: who is inside it stays there

	users sync.WaitGroup // iterators, snapshots and values that are open
	inUse atomic.Bool    // its death is the pool's
	cause atomic.Pointer[error]
}

// reader is what the store can be read through: all of it, or a snapshot.
type reader interface {
	Get(key []byte) (value []byte, closer io.Closer, err error)
	NewIter(o *pebble.IterOptions) (*iterator, error)
}

var _, _ reader = (*metadata)(nil), (*moment)(nil)

type iterator struct {
	*pebble.Iterator
	of *metaStore
}

// Close ends it.
func (it *iterator) Close() error {
	defer it.of.users.Done()
	return it.Iterator.Close()
}

type moment struct {
	*pebble.Snapshot
	of *metaStore
}

// NewIter is the snapshot's.
func (s *moment) NewIter(o *pebble.IterOptions) (*iterator, error) {
	s.of.users.Add(1)
	return s.of.iterator(s.Snapshot.NewIter(o))
}

// Close ends it.
func (s *moment) Close() error {
	defer s.of.users.Done()
	return s.Snapshot.Close()
}

// iterator is called with the user counted.
func (s *metaStore) iterator(it *pebble.Iterator, err error) (*iterator, error) {
	if err != nil {
		s.users.Done()
		return nil, err
	}
	return &iterator{it, s}, nil
}

// usedValue is a value in Pebble's memory.
type usedValue struct {
	io.Closer
	of *metaStore
}

func (v usedValue) Close() error {
	defer v.of.users.Done()
	return v.Closer.Close()
}

// Get reads one value.
func (m *metadata) Get(key []byte) ([]byte, io.Closer, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	value, closer, err := m.at.db.Get(key)
	if err != nil {
		return nil, nil, err
	}
	m.at.users.Add(1)
	return value, usedValue{closer, m.at}, nil
}

// NewIter begins to read many.
func (m *metadata) NewIter(o *pebble.IterOptions) (*iterator, error) {
	m.mu.RLock()
	defer m.mu.RUnlock()
	m.at.users.Add(1)
	return m.at.iterator(m.at.db.NewIter(o))
}

// NewSnapshot keeps a moment.
func (m *metadata) NewSnapshot() *moment {
	m.mu.RLock()
	defer m.mu.RUnlock()
	m.at.users.Add(1)
	return &moment{m.at.db.NewSnapshot(), m.at}
}

// bytes is the space that its files take.
func (m *metadata) bytes() int64 {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return int64(m.at.db.Metrics().DiskSpaceUsage())
}

// counts tells what was written since the pool was opened, whatever the member.
func (m *metadata) counts() metafs.Counts {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.past.Add(m.at.fs.Stats().Counts())
}

// close closes the Pebble in use. Nobody reads or writes any more.
func (m *metadata) close() error {
	m.mu.RLock()
	at := m.at
	m.mu.RUnlock()
	return at.close()
}

// close closes a Pebble when its last reader has ended. A dead one is left as it is: closing it would wait for those who stay inside, and might write. It
// may die while it is closed, and is left then.
func (s *metaStore) close() error {
	select {
	case <-s.dead:
		return nil
	default:
	}
	closed := make(chan error, 1)
	go func() {
		s.users.Wait()
		err := s.db.Close()
		s.fs.Close()
		closed <- err
	}()
	select {
	case err := <-closed:
		return err
	case <-s.dead:
		return errDead
	}
}

// openMetadata opens the pool's metadata on a member.
func (p *Pool) openMetadata(on *member.Member, fresh bool) (*metadata, error) {
	m := &metadata{dead: make(chan struct{})}
	s, err := p.openPebble(m, on, fresh, true)
	if errors.Is(err, errOpening) {
		return nil, p.failure() // which the same death has caused
	}
	if err != nil {
		return nil, err
	}
	m.at = s
	return m, nil
}

// errOpening: Pebble met an error that it cannot live with while it was opened. Goroutines of its stay for good.
var errOpening = errors.New("open metadata")

// openPebble opens Pebble on a member. Where it cannot go on, metafs keeps its goroutines from returning, so it is opened on one of its own. With inUse its
// death is the pool's from the beginning.
func (p *Pool) openPebble(m *metadata, on *member.Member, fresh, inUse bool) (*metaStore, error) {
	s := &metaStore{dead: make(chan struct{})}
	s.inUse.Store(inUse)
	s.fs = metafs.New(p.fs, metafs.Config{LogBytes: p.options.logBytes, OnNoSpace: func() bool { return p.releaseBallast(on) }, OnFatal: func(err error) {
		if s.inUse.Load() {
			p.fail(err)
		}
		if s.cause.CompareAndSwap(nil, &err) {
			close(s.dead)
			if s.inUse.Load() {
				m.once.Do(func() { close(m.dead) })
			}
		}
	}})
	o := metafs.Options(s.fs, pebbleCache)
	o.ReadOnly, o.ErrorIfNotExists = p.options.ReadOnly, !fresh
	dir := on.MetaDir()
	result := make(chan error, 1)
	go func() {
		db, err := pebble.Open(dir, o)
		s.fs.Opened()
		s.db = db
		result <- err
	}()
	select {
	case err := <-result:
		if err == nil {
			return s, nil
		}
		s.fs.Close()
		return nil, fmt.Errorf("open metadata in %s: %w", dir, metadataError(err))
	case <-s.dead:
		return nil, fmt.Errorf("%w in %s: %w", errOpening, dir, *s.cause.Load())
	}
}

// newBatch is one for the Pebble in use: the committer's, or a repair's.
func (m *metadata) newBatch() *pebble.Batch { return m.at.db.NewBatch() }

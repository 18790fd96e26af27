package flushlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"github.com/rowan-csi/rowan/pkg/engine/ring"
)

const (
	magic      = "ROWANFLG"
	version    = 1
	blockSize  = 4096
	headerSize = 64
	entrySize  = 40
	// MaxEntries is how many runs a record holds.
	MaxEntries = (blockSize - headerSize) / entrySize
)

// record is what a flush made durable: the entries with sequences above after and up to last. Sequences that nobody wrote are left out.
type record struct {
	number  uint64 // counts from 1; its slot is number modulo the slots
	after   uint64
	last    uint64
	entries []ring.Entry
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errNoRecord = errors.New("no record")
	errOther    = errors.New("another pool's record")
)

func (r *record) encode(p []byte, pool [16]byte) {
	le := binary.LittleEndian
	clear(p)
	copy(p, magic)
	le.PutUint32(p[8:], version)
	copy(p[16:], pool[:])
	le.PutUint64(p[32:], r.number)
	le.PutUint64(p[40:], r.after)
	le.PutUint64(p[48:], r.last)
	le.PutUint16(p[56:], uint16(len(r.entries)))
	for i, e := range r.entries {
		q := p[headerSize+i*entrySize:]
		le.PutUint64(q, e.Sequence)
		le.PutUint64(q[8:], e.Generation)
		le.PutUint64(q[16:], e.Block)
		le.PutUint64(q[24:], e.Place)
		le.PutUint32(q[32:], e.Length)
		le.PutUint16(q[36:], e.Kind)
	}
	le.PutUint32(p[12:], crc32.Checksum(p, castagnoli))
}

// decode reads a block; errNoRecord: there is none in it, or not all of one. The checksum's place and that of the version are the same in every version.
func decode(p []byte, pool [16]byte) (r record, err error) {
	le := binary.LittleEndian
	if len(p) != blockSize || string(p[:8]) != magic {
		return r, errNoRecord
	}
	sum := crc32.Update(0, castagnoli, p[:12])
	sum = crc32.Update(sum, castagnoli, make([]byte, 4))
	if sum = crc32.Update(sum, castagnoli, p[16:]); sum != le.Uint32(p[12:]) {
		return r, errNoRecord
	}
	if v := le.Uint32(p[8:]); v != version {
		return r, fmt.Errorf("%w %d: this program reads %d", ErrVersion, v, version)
	}
	if [16]byte(p[16:32]) != pool {
		return r, errOther
	}
	r.number, r.after, r.last = le.Uint64(p[32:]), le.Uint64(p[40:]), le.Uint64(p[48:])
	n := int(le.Uint16(p[56:]))
	if n > MaxEntries || r.number == 0 || r.last < r.after {
		return r, errNoRecord
	}
	before := r.after
	for i := range n {
		q := p[headerSize+i*entrySize:]
		e := ring.Entry{
			Sequence: le.Uint64(q), Generation: le.Uint64(q[8:]), Block: le.Uint64(q[16:]), Place: le.Uint64(q[24:]), Length: le.Uint32(q[32:]),
			Kind: le.Uint16(q[36:]),
		}
		if e.Sequence <= before || e.Sequence > r.last || e.Length == 0 {
			return r, errNoRecord
		}
		before = e.Sequence
		r.entries = append(r.entries, e)
	}
	return r, nil
}

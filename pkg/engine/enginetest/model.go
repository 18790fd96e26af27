package enginetest

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"io"
	"maps"
	"slices"

	"github.com/rowan-csi/rowan/pkg/engine"
)

const (
	sector = 512
	block  = engine.BlockSize
)

// image is what a device shows: blocks that are not zeroes, by number. A block's bytes are never changed once they are in an image, so that copies share
// them.
type image struct {
	size   int64
	blocks map[int64][]byte
	events []event
}

// event is a change of some bytes. What the events of two images have in common at their beginning is what happened before they parted.
type event struct {
	id     int
	off, n int64
}

var zeroes = make([]byte, block)

func newImage(size int64) *image { return &image{size: size, blocks: map[int64][]byte{}} }

func (m *image) clone() *image {
	return &image{size: m.size, blocks: maps.Clone(m.blocks), events: slices.Clone(m.events)}
}

func (m *image) at(number int64) []byte {
	if b, ok := m.blocks[number]; ok {
		return b
	}
	return zeroes
}

// write puts bytes over a range; nil: zeroes.
func (m *image) write(p []byte, off, n int64) {
	for done := int64(0); done < n; {
		number, from := (off+done)/block, (off+done)%block
		k := min(block-from, n-done)
		b := bytes.Clone(m.at(number))
		if p == nil {
			clear(b[from : from+k])
		} else {
			copy(b[from:from+k], p[done:])
		}
		if m.blocks[number] = b; bytes.Equal(b, zeroes) {
			delete(m.blocks, number)
		}
		done += k
	}
}

// device is what is read of an engine.
type device interface {
	io.ReaderAt
	Size() int64
}

// compare reads a range and compares it.
func (m *image) compare(what string, dev device, off, n int64) error {
	got := make([]byte, n)
	if _, err := dev.ReadAt(got, off); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	for at := int64(0); at < n; at += sector {
		pos := off + at
		want := m.at(pos / block)[pos%block:][:sector]
		if !bytes.Equal(got[at:at+sector], want) {
			return fmt.Errorf("%s: sector %d (block %d) shows %x…, wanted %x…", what, pos/sector, pos/block, got[at:at+16], want[:16])
		}
	}
	return nil
}

func (m *image) compareAll(what string, dev device) error {
	if dev.Size() != m.size {
		return fmt.Errorf("%s has %d bytes, wanted %d", what, dev.Size(), m.size)
	}
	const piece = 1 << 20
	for off := int64(0); off < m.size; off += piece {
		if err := m.compare(what, dev, off, min(piece, m.size-off)); err != nil {
			return err
		}
	}
	return nil
}

// stamped makes bytes that no other operation makes.
func stamped(stamp uint64, n int64) []byte {
	p := make([]byte, n)
	for i := int64(0); i < n; i += 8 {
		binary.LittleEndian.PutUint64(p[i:], stamp*0x9e3779b97f4a7c15+uint64(i)+1)
	}
	return p
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

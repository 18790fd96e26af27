package ring

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"unicode/utf8"
)

const (
	magic      = "ROWANRNG"
	version    = 1
	pageSize   = 4096 // the header page
	headerSize = 512  // one of its two copies
	copyStride = pageSize / 2
	entrySize  = 64
	minLog2    = 6 // slots: a page of them
	maxLog2    = 24
	maxReason  = 256
)

// ZeroPlace is the place of blocks that read as zeroes.
const ZeroPlace = ^uint64(0)

// Entry is one acknowledged write, discard or write of zeroes.
type Entry struct {
	Sequence   uint64
	Generation uint64
	Block      uint64 // of the volume
	Place      uint64 // block of the pool, or ZeroPlace
	Length     uint32 // blocks, at least 1
	Kind       uint16 // the engine's
	Epoch      uint32 // low half of the open epoch; Append sets it
}

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

var (
	errEmpty   = errors.New("slot is empty")
	errBadCRC  = errors.New("checksum does not match")
	errBadBody = errors.New("field out of range")
)

func (e *Entry) encode(p *[entrySize]byte) {
	le := binary.LittleEndian
	le.PutUint64(p[0:], e.Sequence)
	le.PutUint64(p[8:], e.Generation)
	le.PutUint64(p[16:], e.Block)
	le.PutUint64(p[24:], e.Place)
	le.PutUint32(p[32:], e.Length)
	le.PutUint32(p[36:], e.Epoch)
	le.PutUint16(p[40:], e.Kind)
	clear(p[42:60])
	le.PutUint32(p[60:], entryCRC(p))
}

// entryCRC is never 0, which marks a slot as empty.
func entryCRC(p *[entrySize]byte) uint32 { return max(crc32.Checksum(p[:60], castagnoli), 1) }

func decodeEntry(p *[entrySize]byte) (Entry, error) {
	le := binary.LittleEndian
	switch le.Uint32(p[60:]) {
	case 0:
		return Entry{}, errEmpty
	case entryCRC(p):
	default:
		return Entry{}, errBadCRC
	}
	e := Entry{
		Sequence: le.Uint64(p[0:]), Generation: le.Uint64(p[8:]), Block: le.Uint64(p[16:]), Place: le.Uint64(p[24:]),
		Length: le.Uint32(p[32:]), Epoch: le.Uint32(p[36:]), Kind: le.Uint16(p[40:]),
	}
	if [18]byte(p[42:60]) != ([18]byte{}) {
		return Entry{}, errBadBody
	}
	return e, e.validate()
}

func (e *Entry) validate() error {
	if e.Sequence == 0 || e.Length == 0 || e.Block+uint64(e.Length) < e.Block || (e.Place != ZeroPlace && e.Place+uint64(e.Length) < e.Place) {
		return errBadBody
	}
	return nil
}

// header is what a ring's file says of itself.
type header struct {
	log2   uint32
	poolID [16]byte
	bootID [16]byte
	epoch  uint64
	serial uint64
	failed bool
	reason string
}

func (h *header) encode(p *[headerSize]byte) {
	le := binary.LittleEndian
	clear(p[:])
	copy(p[0:], magic)
	le.PutUint32(p[8:], version)
	le.PutUint32(p[12:], h.log2)
	copy(p[16:], h.poolID[:])
	copy(p[32:], h.bootID[:])
	le.PutUint64(p[48:], h.epoch)
	le.PutUint64(p[56:], h.serial)
	if h.failed {
		le.PutUint16(p[64:], 1)
	}
	le.PutUint16(p[66:], uint16(copy(p[68:68+maxReason], clip(h.reason))))
	le.PutUint32(p[508:], crc32.Checksum(p[:508], castagnoli))
}

// clip shortens a reason to what the header holds, at a character's boundary.
func clip(s string) string {
	if len(s) <= maxReason {
		return s
	}
	n := maxReason
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func decodeHeader(p *[headerSize]byte) (header, error) {
	le := binary.LittleEndian
	if string(p[:8]) != magic {
		return header{}, fmt.Errorf("no header: %w", ErrDamaged)
	}
	if crc32.Checksum(p[:508], castagnoli) != le.Uint32(p[508:]) {
		return header{}, fmt.Errorf("header: %w: %w", errBadCRC, ErrDamaged)
	}
	if v := le.Uint32(p[8:]); v != version {
		return header{}, fmt.Errorf("version %d, this program reads %d: %w", v, version, ErrVersion)
	}
	h := header{
		log2: le.Uint32(p[12:]), poolID: [16]byte(p[16:]), bootID: [16]byte(p[32:]), epoch: le.Uint64(p[48:]), serial: le.Uint64(p[56:]),
		failed: le.Uint16(p[64:]) == 1,
	}
	n := le.Uint16(p[66:])
	if n > maxReason || h.log2 < minLog2 || h.log2 > maxLog2 || le.Uint16(p[64:]) > 1 {
		return header{}, fmt.Errorf("header: %w: %w", errBadBody, ErrDamaged)
	}
	h.reason = string(p[68 : 68+n])
	return h, nil
}

// newestHeader picks the valid copy with the higher serial. Of two invalid ones the first one's error is told, unless the second one's names a version.
func newestHeader(page *[pageSize]byte) (header, error) {
	a, errA := decodeHeader((*[headerSize]byte)(page[:]))
	b, errB := decodeHeader((*[headerSize]byte)(page[copyStride:]))
	switch {
	case errA != nil && errB != nil:
		if errors.Is(errB, ErrVersion) {
			return header{}, errB
		}
		return header{}, errA
	case errA != nil, errB == nil && b.serial > a.serial:
		return b, nil
	}
	return a, nil
}

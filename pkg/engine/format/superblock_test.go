package format

import (
	"bytes"
	"encoding/binary"
	"errors"
	"flag"
	"hash/crc32"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

var updateGolden = flag.Bool("update-superblock", false, "write the golden superblock again")

func exampleSuperblock() Superblock {
	return Superblock{
		PoolID:      UUID{0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x47, 0x88, 0x99, 0xaa, 0xbb, 0xcc, 0xdd, 0xee, 0xff, 0x01},
		MemberID:    UUID{0xa1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 0x47, 0x08, 0x89, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x10},
		MemberIndex: 0,
		PoolName:    "fast",
		Size:        12 << 30,
		SectorSize:  512,
		Created:     time.Date(2026, 3, 4, 5, 6, 7, 89, time.UTC),
		Device:      "/dev/disk/by-id/nvme-1",
		Node:        "node-a",
		Metadata:    3,
		MovingTo:    UUID{0xb1, 0xb2, 0xc3, 0xd4, 0xe5, 0xf6, 0x47, 0x08, 0x89, 0x1a, 0x1b, 0x1c, 0x1d, 0x1e, 0x1f, 0x10},
	}
}

func encoded(t testing.TB, s Superblock) []byte {
	t.Helper()
	b, err := s.Encode()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// changed sets bytes and makes the checksum right again.
func changed(b []byte, off int, with ...byte) []byte {
	b = bytes.Clone(b)
	copy(b[off:], with)
	binary.LittleEndian.PutUint32(b[sbCRC:], crc32.Checksum(b[:sbCRC], castagnoli))
	return b
}

// The golden image is what version 1 wrote: it must be readable for ever.
func TestSuperblockGolden(t *testing.T) {
	name := filepath.Join("testdata", "superblock-v1.bin")
	if *updateGolden {
		if err := os.WriteFile(name, encoded(t, exampleSuperblock()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	golden, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	got, err := DecodeSuperblock(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != exampleSuperblock() {
		t.Errorf("decoded %+v\nwant %+v", got, exampleSuperblock())
	}
	if !bytes.Equal(encoded(t, exampleSuperblock()), golden) {
		t.Error("encoding the example gives other bytes than the golden image")
	}
}

func TestSuperblockBounds(t *testing.T) {
	s := exampleSuperblock()
	s.PoolName, s.Device, s.Node = strings.Repeat("p", MaxPoolName), strings.Repeat("d", MaxDeviceNote), strings.Repeat("n", MaxNode)
	if got, err := DecodeSuperblock(encoded(t, s)); err != nil || got != s {
		t.Errorf("longest strings: %v, %+v", err, got)
	}
	for name, change := range map[string]func(*Superblock){
		"no name":         func(s *Superblock) { s.PoolName = "" },
		"long name":       func(s *Superblock) { s.PoolName = strings.Repeat("p", MaxPoolName+1) },
		"name of bytes":   func(s *Superblock) { s.PoolName = "a\xff" },
		"name with line":  func(s *Superblock) { s.PoolName = "a\nb" },
		"long device":     func(s *Superblock) { s.Device = strings.Repeat("d", MaxDeviceNote+1) },
		"long node":       func(s *Superblock) { s.Node = strings.Repeat("n", MaxNode+1) },
		"no pool id":      func(s *Superblock) { s.PoolID = UUID{} },
		"no member id":    func(s *Superblock) { s.MemberID = UUID{} },
		"no size":         func(s *Superblock) { s.Size = 0 },
		"negative size":   func(s *Superblock) { s.Size = -1 << 20 },
		"odd size":        func(s *Superblock) { s.Size++ },
		"sector":          func(s *Superblock) { s.SectorSize = 1024 },
		"no time":         func(s *Superblock) { s.Created = time.Time{} },
		"unknown feature": func(s *Superblock) { s.Incompatible = 1 << 63 },
	} {
		s := exampleSuperblock()
		change(&s)
		if _, err := s.Encode(); !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnknownFeatures) {
			t.Errorf("%s: encoded, error %v", name, err)
		}
	}
}

func TestSuperblockDamaged(t *testing.T) {
	good := encoded(t, exampleSuperblock())
	for name, b := range map[string][]byte{
		"empty":           nil,
		"short":           good[:SuperblockSize-1],
		"long":            append(bytes.Clone(good), 0),
		"zeroes":          make([]byte, SuperblockSize),
		"magic":           changed(good, sbMagic, 'X'),
		"name length":     changed(good, sbNameLen, 0xff, 0xff),
		"name tail":       changed(good, sbName+100, 'x'),
		"reserved":        changed(good, sbEnd+10, 1),
		"reserved in gap": changed(good, sbStopAt+2, 1),
		"limit of growth": changed(good, sbStopAt, 101),
		"sector":          changed(good, sbSectorSize, 1),
	} {
		if s, err := DecodeSuperblock(b); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%s: error %v, superblock %+v", name, err, s)
		}
	}
	for i := 0; i < SuperblockSize; i++ { // one flipped bit anywhere
		b := bytes.Clone(good)
		b[i] ^= 1 << (i % 8)
		if _, err := DecodeSuperblock(b); !errors.Is(err, ErrCorrupt) {
			t.Fatalf("bit flipped in byte %d: error %v", i, err)
		}
	}
}

func TestSuperblockFeatures(t *testing.T) {
	good := encoded(t, exampleSuperblock())
	s, err := DecodeSuperblock(changed(good, sbIncompatible, 0b10111))
	if !errors.Is(err, ErrUnknownFeatures) || !strings.Contains(err.Error(), "bit 2, bit 4") || s.PoolName != "fast" {
		t.Errorf("incompatible features: %v, pool %q", err, s.PoolName)
	}
	if _, err := DecodeSuperblock(changed(good, sbVersion, 2)); !errors.Is(err, ErrUnknownFeatures) || !strings.Contains(err.Error(), "version 2") {
		t.Errorf("newer version: %v", err)
	}
	if s, err = DecodeSuperblock(changed(good, sbIncompatible, 1)); err != nil || s.Incompatible != Unfinished {
		t.Errorf("unfinished: %v, features %b", err, s.Incompatible)
	}
	// A compatible feature is passed over, with whatever it keeps in the reserved bytes, and gone when the superblock is written again.
	s, err = DecodeSuperblock(changed(changed(good, sbCompatible, 4), sbEnd, 1, 2, 3))
	if err != nil || s != exampleSuperblock() {
		t.Errorf("compatible feature: %v, %+v", err, s)
	}
}

func FuzzDecodeSuperblock(f *testing.F) {
	good := encoded(f, exampleSuperblock())
	f.Add(good)
	f.Add(good[:100])
	f.Add(changed(good, sbIncompatible, 1))
	f.Add(changed(good, sbIncompatible, 4))
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) == SuperblockSize {
			b = changed(b, 0) // a right checksum lets the fuzzer reach what lies behind it
		}
		s, err := DecodeSuperblock(b)
		if err != nil {
			if !errors.Is(err, ErrCorrupt) && !errors.Is(err, ErrUnknownFeatures) {
				t.Fatalf("error of no kind: %v", err)
			}
			return
		}
		again, err := DecodeSuperblock(encoded(t, s))
		if err != nil || again != s {
			t.Fatalf("decoded %+v, which comes back as %+v, %v", s, again, err)
		}
	})
}

func TestUUID(t *testing.T) {
	u := NewUUID()
	if got, err := ParseUUID(u.String()); err != nil || got != u || u.IsZero() || u == NewUUID() {
		t.Errorf("%v comes back as %v, %v", u, got, err)
	}
	for _, s := range []string{
		"", "x", u.String() + "0", strings.ToUpper("aabbccdd-0000-4000-8000-000000000000"), "aabbccdd00004000-8000-000000000000----",
	} {
		if _, err := ParseUUID(s); !errors.Is(err, ErrCorrupt) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

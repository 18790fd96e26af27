package blocktest

import (
	"bytes"
	"math/rand/v2"
	"testing"

	"github.com/rowan-csi/rowan/pkg/block"
)

func seeded(t testing.TB, c Config) *rand.Rand {
	t.Helper()
	t.Logf("seed %d", c.Seed)
	return rand.New(rand.NewPCG(c.Seed, 1))
}

func random(rng *rand.Rand, n int64) []byte {
	p := make([]byte, n)
	for i := 0; i+8 <= len(p); i += 8 {
		v := rng.Uint64()
		for j := range 8 {
			p[i+j] = byte(v >> (8 * j))
		}
	}
	return p
}

// spots are places worth testing for a range of n bytes: the beginning, the middle and the very end, which need not be aligned to blocks. A device
// too small to keep them apart still gets all three.
func spots(dev block.Device, n int64) []int64 {
	sector := int64(dev.SectorSize())
	last := (dev.Size() - n) / sector * sector
	return []int64{0, last / 2 / sector * sector, last}
}

func write(t testing.TB, dev block.Device, off int64, p []byte) {
	t.Helper()
	if n, err := dev.WriteAt(p, off); err != nil || n != len(p) {
		t.Fatalf("WriteAt of %d bytes at %d: %d, %v", len(p), off, n, err)
	}
}

func read(t testing.TB, dev block.Device, off int64, p []byte) {
	t.Helper()
	if n, err := dev.ReadAt(p, off); err != nil || n != len(p) {
		t.Fatalf("ReadAt of %d bytes at %d: %d, %v", len(p), off, n, err)
	}
}

func expect(t testing.TB, dev block.Device, off int64, want []byte, when string) {
	t.Helper()
	got := bytes.Repeat([]byte{0xee}, len(want)) // a device that leaves the buffer alone must not pass
	read(t, dev, off, got)
	if bytes.Equal(got, want) {
		return
	}
	for i := range want {
		if got[i] != want[i] {
			t.Fatalf("%s: byte %d (%d into a range of %d) is %#x; want %#x", when, off+int64(i), i, len(want), got[i], want[i])
		}
	}
}

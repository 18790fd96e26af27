// Package blocktest holds what every block.Device must pass, whoever made it: the conformance suite (Run), verified traffic with stamped sectors
// (Torture), and File, which makes a Device of a file or of /dev/… so that the suite can run through a kernel.
//
// It imports testing, so only tests import it. A failing test prints its seed; Config.Seed repeats it.
package blocktest

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"sync"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/block"
)

// MinSize is the smallest device the suite runs on, in bytes. Larger ones are tested at their beginning, their end and in between.
const MinSize = 16 << 20

// Config says how to get the devices that Run tests.
type Config struct {
	// New makes a blank device of at least MinSize, and cleans up with t.Cleanup.
	New func(t testing.TB) block.Device
	// Reopen closes the device and opens it again, as after a restart of what serves it. Optional.
	Reopen func(t testing.TB, dev block.Device) block.Device
	// ReadOnly makes a device that takes no writes. Optional.
	ReadOnly func(t testing.TB) block.Device
	// Seed for random traffic; 0 takes the time.
	Seed uint64
}

// Run runs the conformance suite.
func Run(t *testing.T, c Config) {
	if c.Seed == 0 {
		c.Seed = uint64(time.Now().UnixNano())
	}
	for _, test := range []struct {
		name string
		run  func(*testing.T, Config)
	}{
		{"Geometry", testGeometry},
		{"ReadsZeroes", testReadsZeroes},
		{"WriteRead", testWriteRead},
		{"Ranges", testRanges},
		{"DiscardAndZeroes", testDiscardAndZeroes},
		{"KeepsNoBuffer", testKeepsNoBuffer},
		{"Model", testModel},
		{"OverlappingWrites", testOverlapping},
		{"Torture", testTorture},
		{"Reopen", testReopen},
		{"ReadOnly", testReadOnly},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
}

func testGeometry(t *testing.T, c Config) {
	dev := c.New(t)
	if s := dev.SectorSize(); s != 512 && s != 4096 {
		t.Errorf("SectorSize is %d; want 512 or 4096", s)
	}
	if size := dev.Size(); size < MinSize || size%int64(dev.SectorSize()) != 0 {
		t.Errorf("Size is %d; want at least %d and a multiple of the sector", size, MinSize)
	}
	if err := dev.Flush(); err != nil {
		t.Errorf("Flush of a blank device: %v", err)
	}
}

func testReadsZeroes(t *testing.T, c Config) {
	dev := c.New(t)
	for _, off := range spots(dev, 64<<10) {
		expect(t, dev, off, make([]byte, 64<<10), "blank device")
	}
}

// testWriteRead writes and reads every size at every alignment that the block, page and chunk borders around it make interesting.
func testWriteRead(t *testing.T, c Config) {
	dev, rng := c.New(t), seeded(t, c)
	sector := int64(dev.SectorSize())
	sizes := []int64{sector, 2 * sector, 4096, 4096 + sector, 3*4096 - sector, 64 << 10, 1 << 20, 1<<20 + sector, 3 << 20}
	for _, size := range sizes {
		for _, base := range spots(dev, size+2*sector) {
			for shift := int64(0); shift <= 2; shift++ {
				want := random(rng, size)
				write(t, dev, base+shift*sector, want)
				expect(t, dev, base+shift*sector, want, "after writing it")
			}
		}
	}
}

func testRanges(t *testing.T, c Config) {
	dev := c.New(t)
	size, sector := dev.Size(), int64(dev.SectorSize())
	buf := make([]byte, 2*sector)
	calls := map[string]func(off, n int64) error{
		"ReadAt":      func(off, n int64) error { _, err := dev.ReadAt(buf[:n], off); return err },
		"WriteAt":     func(off, n int64) error { _, err := dev.WriteAt(buf[:n], off); return err },
		"Discard":     dev.Discard,
		"WriteZeroes": dev.WriteZeroes,
	}
	for name, call := range calls {
		for _, r := range []struct {
			off, n int64
			want   error
		}{
			{size, sector, block.ErrOutOfRange}, {size - sector, 2 * sector, block.ErrOutOfRange}, {size + 4096, sector, block.ErrOutOfRange},
			{1, sector, block.ErrUnaligned}, {0, sector - 1, block.ErrUnaligned}, {-sector, sector, nil},
			{math.MaxInt64 / 4096 * 4096, sector, block.ErrOutOfRange},
		} {
			err := call(r.off, r.n)
			if err == nil {
				t.Errorf("%s(%d, %d) of a device of %d bytes succeeded", name, r.off, r.n, size)
			}
			if r.want != nil && !errors.Is(err, r.want) {
				t.Errorf("%s(%d, %d): %v; want %v", name, r.off, r.n, err, r.want)
			}
		}
		if err := call(size-sector, sector); err != nil {
			t.Errorf("%s of the last sector: %v", name, err)
		}
		if err := call(size, 0); err != nil {
			t.Errorf("%s of nothing at the end: %v", name, err)
		}
	}
}

func testDiscardAndZeroes(t *testing.T, c Config) {
	dev, rng := c.New(t), seeded(t, c)
	sector := int64(dev.SectorSize())
	for name, drop := range map[string]func(off, length int64) error{"Discard": dev.Discard, "WriteZeroes": dev.WriteZeroes} {
		for _, base := range spots(dev, 1<<20) {
			for _, r := range [][2]int64{{0, 1 << 20}, {0, sector}, {4096, 4096}, {sector, 8192}, {4096 - sector, 2 * sector}, {64 << 10, 128 << 10}} {
				want := random(rng, 1<<20)
				write(t, dev, base, want)
				if err := drop(base+r[0], r[1]); err != nil {
					t.Fatalf("%s %d bytes at %d: %v", name, r[1], base+r[0], err)
				}
				clear(want[r[0] : r[0]+r[1]])
				expect(t, dev, base, want, name)
			}
		}
	}
}

func testKeepsNoBuffer(t *testing.T, c Config) {
	dev, rng := c.New(t), seeded(t, c)
	p := random(rng, 64<<10)
	want := bytes.Clone(p)
	write(t, dev, 0, p)
	clear(p)
	expect(t, dev, 0, want, "after the caller reused its buffer")
}

// testModel does random requests one after the other and compares with an array of bytes.
func testModel(t *testing.T, c Config) {
	dev, rng := c.New(t), seeded(t, c)
	sector := int64(dev.SectorSize())
	const span = 8 << 20
	base := (dev.Size() - span) / sector / 2 * sector
	model := make([]byte, span)
	for i := range 1500 {
		n := (1 + rng.Int64N(32)) * sector
		if rng.IntN(20) == 0 {
			n = sector * (1 + rng.Int64N((1<<20)/sector))
		}
		off := rng.Int64N((span-n)/sector+1) * sector
		switch k := rng.IntN(10); {
		case k < 4:
			p := random(rng, n)
			write(t, dev, base+off, p)
			copy(model[off:], p)
		case k < 5:
			if err := dev.Discard(base+off, n); err != nil {
				t.Fatalf("step %d: discard: %v", i, err)
			}
			clear(model[off : off+n])
		case k < 6:
			if err := dev.WriteZeroes(base+off, n); err != nil {
				t.Fatalf("step %d: write zeroes: %v", i, err)
			}
			clear(model[off : off+n])
		case k < 7 && i%10 == 0:
			if err := dev.Flush(); err != nil {
				t.Fatalf("step %d: flush: %v", i, err)
			}
		default:
			expect(t, dev, base+off, model[off:off+n], fmt.Sprintf("step %d", i))
		}
	}
	for off := int64(0); off < span; off += 1 << 20 {
		expect(t, dev, base+off, model[off:off+1<<20], "at the end")
	}
}

// testOverlapping has writers race for the same sectors: each sector must hold one writer's content, whole.
func testOverlapping(t *testing.T, c Config) {
	dev := c.New(t)
	sector := dev.SectorSize()
	const writers = 8
	length := 32 * sector
	for round := range 20 {
		var wg sync.WaitGroup
		for w := range writers {
			wg.Go(func() {
				p := bytes.Repeat([]byte{byte(1 + w)}, length)
				if _, err := dev.WriteAt(p, int64(w%4*sector)); err != nil {
					t.Errorf("write: %v", err)
				}
			})
		}
		wg.Wait()
		got := make([]byte, length)
		read(t, dev, 0, got)
		for s := 0; s < len(got); s += sector {
			if one := bytes.Repeat(got[s:s+1], sector); got[s] < 1 || got[s] > writers || !bytes.Equal(got[s:s+sector], one) {
				t.Fatalf("round %d: sector at %d mixes the content of several writes", round, s)
			}
		}
	}
}

func testReopen(t *testing.T, c Config) {
	if c.Reopen == nil {
		t.Skip("this device has no Reopen")
	}
	dev, rng := c.New(t), seeded(t, c)
	want := random(rng, 1<<20)
	write(t, dev, 4096, want)
	if err := dev.Discard(8192, 4096); err != nil {
		t.Fatalf("discard: %v", err)
	}
	clear(want[4096:8192])
	if err := dev.Flush(); err != nil {
		t.Fatalf("flush: %v", err)
	}
	size := dev.Size()
	dev = c.Reopen(t, dev)
	if dev.Size() != size {
		t.Errorf("size was %d, is %d after reopening", size, dev.Size())
	}
	expect(t, dev, 4096, want, "after reopening")
}

func testReadOnly(t *testing.T, c Config) {
	if c.ReadOnly == nil {
		t.Skip("this device has no read-only form")
	}
	dev := c.ReadOnly(t)
	p := make([]byte, 4096)
	read(t, dev, 0, p)
	before := bytes.Clone(p)
	_, werr := dev.WriteAt(bytes.Repeat([]byte{0xa5}, 4096), 0)
	for name, err := range map[string]error{"WriteAt": werr, "Discard": dev.Discard(0, 4096), "WriteZeroes": dev.WriteZeroes(0, 4096)} {
		if !errors.Is(err, block.ErrReadOnly) {
			t.Errorf("%s on a read-only device: %v; want ErrReadOnly", name, err)
		}
	}
	if err := dev.Flush(); err != nil {
		t.Errorf("flush of a read-only device: %v", err)
	}
	expect(t, dev, 0, before, "after refused writes")
}

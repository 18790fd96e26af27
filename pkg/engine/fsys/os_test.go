package fsys

import (
	"testing"

	"golang.org/x/sys/unix"
)

func TestOS(t *testing.T) { testFS(t, OS(), t.TempDir()) }

func TestTypeName(t *testing.T) {
	for magic, want := range map[int64]string{unix.XFS_SUPER_MAGIC: "xfs", unix.EXT4_SUPER_MAGIC: "ext4", unix.TMPFS_MAGIC: "tmpfs", 0x1234: "0x1234"} {
		if got := typeName(magic); got != want {
			t.Errorf("%#x: %q, want %q", magic, got, want)
		}
	}
}

func TestAlignedBuffer(t *testing.T) {
	for _, n := range []int{0, 1, 511, 4096, 1 << 20} {
		p := AlignedBuffer(n)
		if len(p) != n || cap(p) != n || (n > 0 && !IsAligned(p[:0], pageSize)) {
			t.Errorf("%d bytes: length %d, capacity %d", n, len(p), cap(p))
		}
	}
	if p := AlignedBuffer(8192); !IsAligned(p, 4096) || IsAligned(p[:100], 512) || IsAligned(p[8:520], 512) {
		t.Error("IsAligned misjudges")
	}
}

func BenchmarkDurableWrite4K(b *testing.B) {
	f, err := OS().Open(b.TempDir()+"/a", Create|Write|Direct)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	p := pattern(4096, 1)
	for i := range 256 {
		if _, err := f.WriteAt(p, int64(i)*4096); err != nil {
			b.Fatal(err)
		}
	}
	if err := f.Sync(); err != nil {
		b.Fatal(err)
	}
	b.Run("DSYNC", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := f.WriteAtDurable(p, int64(i%256)*4096); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("Sync", func(b *testing.B) {
		for i := 0; b.Loop(); i++ {
			if _, err := f.WriteAt(p, int64(i%256)*4096); err != nil {
				b.Fatal(err)
			}
			if err := f.Sync(); err != nil {
				b.Fatal(err)
			}
		}
	})
}

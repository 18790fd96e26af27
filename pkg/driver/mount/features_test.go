package mount

import (
	"encoding/binary"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// What Linux 5.10 knows, from its fs/ext4/ext4.h (EXT4_FEATURE_*_SUPP) and fs/xfs/libxfs/xfs_format.h (XFS_SB_FEAT_*_ALL). What is incompatible and unknown
// keeps it from mounting; what is only read-only compatible, from writing.
const (
	ext4Incompat510 = 0x0002 | 0x0004 | 0x0010 | 0x0040 | 0x0080 | 0x0100 | 0x0200 | 0x0400 | 0x2000 | 0x4000 | 0x8000 | 0x10000 | 0x20000
	ext4ROCompat510 = 0x0001 | 0x0002 | 0x0004 | 0x0008 | 0x0010 | 0x0020 | 0x0040 | 0x0100 | 0x0200 | 0x0400 | 0x2000 | 0x8000
	xfsIncompat510  = 0x1 | 0x2 | 0x4 | 0x8 // ftype, sparse inodes, meta_uuid, bigtime
	xfsROCompat510  = 0x1 | 0x2 | 0x4 | 0x8 // finobt, rmapbt, reflink, inobtcount
)

// TestOldKernels: mkfs may be years newer than the kernel of the node, and switches on what that cannot mount unless it is told not to.
func TestOldKernels(t *testing.T) {
	for _, tc := range []struct {
		fsType             string
		magicAt            int
		magic              []byte
		order              binary.ByteOrder
		incompat, roCompat int
		knows              [2]uint32
	}{
		{ext4, 1024 + 0x38, []byte{0x53, 0xef}, binary.LittleEndian, 1024 + 0x60, 1024 + 0x64, [2]uint32{ext4Incompat510, ext4ROCompat510}},
		{xfs, 0, []byte("XFSB"), binary.BigEndian, 216, 212, [2]uint32{xfsIncompat510, xfsROCompat510}},
	} {
		for _, fresh := range []bool{true, false} {
			if _, err := exec.LookPath("mkfs." + tc.fsType); err != nil {
				t.Skip(err)
			}
			file := filepath.Join(t.TempDir(), "disk")
			if err := os.WriteFile(file, nil, 0o600); err != nil {
				t.Fatal(err)
			}
			if err := os.Truncate(file, 512*mi); err != nil {
				t.Fatal(err)
			}
			if err := New().Format(t.Context(), file, tc.fsType, fresh); err != nil {
				t.Fatal(err)
			}
			f, err := os.Open(file)
			if err != nil {
				t.Fatal(err)
			}
			defer f.Close()
			super := make([]byte, 4096)
			if _, err := f.ReadAt(super, 0); err != nil {
				t.Fatal(err)
			}
			if got := super[tc.magicAt : tc.magicAt+len(tc.magic)]; string(got) != string(tc.magic) {
				t.Fatalf("%s: the superblock's magic is %x", tc.fsType, got)
			}
			for i, at := range []int{tc.incompat, tc.roCompat} {
				if has := tc.order.Uint32(super[at:]); has == 0 || has&^tc.knows[i] != 0 {
					t.Errorf("%s, fresh %v: features %#x at %d, of which Linux 5.10 does not know %#x", tc.fsType, fresh, has, at, has&^tc.knows[i])
				}
			}
		}
	}
}

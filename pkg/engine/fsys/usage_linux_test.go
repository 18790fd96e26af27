package fsys

import (
	"testing"

	"golang.org/x/sys/unix"
)

// TestStatfsUsage: a file system of 1000 blocks, 400 of them in use and 550 of the rest kept back for root, is nearly full, and not of 950 used blocks.
func TestStatfsUsage(t *testing.T) {
	for _, c := range []struct {
		statfs unix.Statfs_t
		want   Usage
	}{
		{unix.Statfs_t{Type: unix.XFS_SUPER_MAGIC, Bsize: 4096, Frsize: 4096, Blocks: 1000, Bfree: 600, Bavail: 600}, Usage{"xfs", 1000 * 4096, 600 * 4096, 0}},
		{unix.Statfs_t{Type: unix.EXT4_SUPER_MAGIC, Bsize: 4096, Frsize: 1024, Blocks: 1000, Bfree: 600, Bavail: 50}, Usage{"ext4", 450 * 1024, 50 * 1024, 0}},
		{unix.Statfs_t{Type: unix.EXT4_SUPER_MAGIC, Bsize: 4096, Blocks: 1000, Bfree: 600, Bavail: 600}, Usage{"ext4", 1000 * 4096, 600 * 4096, 0}},
	} {
		if got := statfsUsage(c.statfs); got != c.want {
			t.Errorf("%+v: %+v, want %+v", c.statfs, got, c.want)
		}
	}
}

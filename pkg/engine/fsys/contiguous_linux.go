package fsys

import (
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// hugePage is the size of a huge page where pages have 4 KiB.
const hugePage = 2 << 20

// NewContiguous makes n zeroed bytes for direct I/O, resident and outside the Go heap, that lie in one piece of physical memory where the kernel has a
// huge page for them (transparent huge pages set to "madvise" or "always"; elsewhere in ordinary pages). n is at most 2 MiB. They are kept until the
// process ends.
func NewContiguous(n int) ([]byte, error) {
	if n < 0 || n > hugePage {
		return nil, fmt.Errorf("contiguous memory of %d bytes: want at most %d", n, hugePage)
	}
	mem, err := unix.Mmap(-1, 0, 2*hugePage, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE|unix.MAP_NORESERVE)
	if err != nil {
		return nil, fmt.Errorf("map contiguous memory: %w", err)
	}
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(mem)))) & (hugePage - 1)
	mem = mem[skip : skip+n : skip+n]
	// It is advice: without huge pages all works the same, and virtual disks have longer queues.
	_ = unix.Madvise(mem, unix.MADV_HUGEPAGE)
	for i := 0; i < n; i += pageSize {
		mem[i] = 0
	}
	return mem, nil
}

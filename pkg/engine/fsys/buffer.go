package fsys

import "unsafe"

// pageSize is what buffers for direct I/O are aligned to: a multiple of every sector size in use.
const pageSize = 4096

// AlignedBuffer makes a zeroed buffer of n bytes that begins on a 4096-byte boundary, fit for Direct files. Its capacity ends with it, so that an
// append cannot reach unaligned memory beside it.
func AlignedBuffer(n int) []byte {
	raw := make([]byte, n+pageSize-1)
	// The collector does not move heap memory, so what is aligned now stays so.
	skip := -int(uintptr(unsafe.Pointer(unsafe.SliceData(raw)))) & (pageSize - 1)
	return raw[skip : skip+n : skip+n]
}

// IsAligned tells whether p begins on a boundary of align bytes and is a multiple of it long.
func IsAligned(p []byte, align int) bool {
	return len(p)%align == 0 && uintptr(unsafe.Pointer(unsafe.SliceData(p)))%uintptr(align) == 0
}

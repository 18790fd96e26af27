// Package fsys is the small file system through which the engine reaches every file of a pool: segments, superblock, flush file, ballast, and (through
// package metafs) Pebble's. Tests put a recording, failing or crashing one underneath.
//
// Contract: names are absolute paths. Data written through a File opened Direct is on the device's side of the page cache when the call returns, and
// durable only after a Sync that began later returned nil. A created, renamed or removed name is durable only after SyncDir of its folder.
package fsys

import (
	"io"
	"io/fs"
)

// OpenFlags say how a file is opened.
type OpenFlags uint8

const (
	// Create makes the file if it is not there.
	Create OpenFlags = 1 << iota
	// Exclusive, with Create, refuses a file that is there.
	Exclusive
	// Write opens for reading and writing; without it the file is read-only.
	Write
	// Direct bypasses the page cache (O_DIRECT): offsets, lengths and buffers must be aligned to File.Alignment.
	Direct
	// Truncate empties the file.
	Truncate
)

// FS is a file system.
type FS interface {
	Open(name string, flags OpenFlags) (File, error)
	MkdirAll(name string) error
	Remove(name string) error
	RemoveAll(name string) error
	Rename(from, to string) error
	ReadDir(name string) ([]string, error)
	Stat(name string) (fs.FileInfo, error)
	// SyncDir makes the names in a folder durable.
	SyncDir(name string) error
	// Usage tells of the file system that holds name.
	Usage(name string) (Usage, error)
}

// Usage is what statfs tells of a file system, in bytes.
type Usage struct {
	Type      string // "xfs", "ext4", "tmpfs", or the magic number in hex
	Total     int64  // without what the file system keeps back for root: Total - Available is in use
	Available int64  // to a process without special rights
	Device    uint64
}

// File is an open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	// Close waits for calls under way, drops the lock and makes nothing durable. Every later call fails with fs.ErrClosed.
	io.Closer
	// WriteAtDurable writes and makes just that data durable, with the metadata needed to read it back (RWF_DSYNC).
	WriteAtDurable(p []byte, off int64) (int, error)
	// Sync is fdatasync: it also flushes the device's cache for every direct write to that device that returned before Sync was called.
	Sync() error
	Size() (int64, error)
	Truncate(size int64) error
	// Allocate reserves space for a range without changing the file's content (unwritten extents); a range beyond the end makes the file longer.
	Allocate(off, length int64) error
	// Punch gives a range's space back; it then reads as zeroes.
	Punch(off, length int64) error
	// Lock takes the exclusive flock of this very descriptor without waiting; ErrLocked when another open file has it.
	Lock() error
	// Alignment is what Direct offsets, lengths and memory must be multiples of (STATX_DIOALIGN; 1 for files not opened Direct).
	Alignment() int
	Name() string
	// Fd is the descriptor, or ^uintptr(0) where there is none.
	Fd() uintptr
}

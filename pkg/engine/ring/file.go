package ring

import (
	"errors"
	"fmt"
	"io/fs"
	"math/bits"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// DefaultBytes is the default size of the slots: 262,144 entries.
const DefaultBytes = 16 << 20

// Config says which ring. PoolID and BootID are compared, not interpreted.
type Config struct {
	Dir           string // folder on a tmpfs; made if missing
	PoolID        [16]byte
	BootID        [16]byte // of /proc/sys/kernel/random/boot_id
	Bytes         int64    // of a ring to make: the slots' size, a power of two, 4 KiB to 1 GiB; 0: DefaultBytes
	AnyFileSystem bool     // for tests: do not insist on a tmpfs
	// Wrote, if set, is told of every change of the file, in order, so that a test can make any state of it again: p was stored at off. It is called
	// with the ring's lock held and does not keep p. The first call for a new ring has all of it; one without bytes says that the file goes.
	Wrote func(off int64, p []byte)
}

// Path is the ring's file.
func (c Config) Path() string { return filepath.Join(c.Dir, fmt.Sprintf("%x.ring", c.PoolID)) }

// Create makes an empty ring in place of any that is there.
func Create(c Config, epoch uint64) (*Ring, error) {
	size := c.Bytes
	if size == 0 {
		size = DefaultBytes
	}
	log2 := bits.Len64(uint64(size/entrySize)) - 1
	if size != entrySize<<max(log2, 0) || log2 < minLog2 || log2 > maxLog2 {
		return nil, fmt.Errorf("ring of %d bytes: the size must be a power of two from %d to %d: %w", size, entrySize<<minLog2, entrySize<<maxLog2, ErrUse)
	}
	if err := os.MkdirAll(c.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("create ring: %w", err)
	}
	if err := c.checkFileSystem(); err != nil {
		return nil, err
	}
	// Under another name until it is whole, so that a death here leaves the old ring or none.
	path := c.Path() + ".new"
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("create ring: %w", err)
	}
	defer f.Close()
	if err := unix.Fallocate(int(f.Fd()), 0, 0, pageSize+size); err != nil {
		_ = os.Remove(path)
		return nil, fmt.Errorf("reserve %d bytes for ring %s (its tmpfs needs that much free): %w", pageSize+size, path, err)
	}
	r, err := mapRing(f, path, pageSize+size)
	if err != nil {
		_ = os.Remove(path)
		return nil, err
	}
	r.header = header{log2: uint32(log2), poolID: c.PoolID, bootID: c.BootID, epoch: epoch}
	r.storeHeader()
	if err := os.Rename(path, c.Path()); err != nil {
		return nil, errors.Join(fmt.Errorf("create ring: %w", err), r.Close(), os.Remove(path))
	}
	r.path, r.wrote = c.Path(), c.Wrote
	r.tell(0, r.mem)
	return r, nil
}

// Open opens the ring an earlier process of this boot left. epoch is the last one committed in the metadata.
func Open(c Config, epoch uint64) (*Ring, error) {
	path := c.Path()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("open ring %s: %w", path, ErrMissing)
	}
	if err != nil {
		return nil, fmt.Errorf("open ring: %w", err)
	}
	defer f.Close()
	if err := c.checkFileSystem(); err != nil {
		return nil, err
	}
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("open ring: %w", err)
	}
	var page [pageSize]byte
	if _, err := f.ReadAt(page[:], 0); err != nil {
		return nil, fmt.Errorf("open ring %s: read header: %w: %w", path, err, ErrDamaged)
	}
	h, err := newestHeader(&page)
	switch size := pageSize + int64(entrySize)<<h.log2; {
	case err != nil:
	case h.poolID != c.PoolID:
		err = fmt.Errorf("it has pool id %x: %w", h.poolID, ErrOtherPool)
	case h.bootID != c.BootID:
		err = fmt.Errorf("it has boot id %x: %w", h.bootID, ErrOtherBoot)
	case info.Size() != size:
		err = fmt.Errorf("its size is %d bytes and should be %d: %w", info.Size(), size, ErrDamaged)
	case h.epoch != epoch && h.epoch != epoch+1:
		err = fmt.Errorf("its epoch is %d and the pool's %d: %w", h.epoch, epoch, ErrStaleEpoch)
	}
	if err != nil {
		return nil, fmt.Errorf("open ring %s: %w", path, err)
	}
	r, err := mapRing(f, path, info.Size())
	if err != nil {
		return nil, err
	}
	r.header, r.wrote = h, c.Wrote
	return r, nil
}

func (c Config) checkFileSystem() error {
	if c.AnyFileSystem {
		return nil
	}
	var s unix.Statfs_t
	if err := unix.Statfs(c.Dir, &s); err != nil {
		return fmt.Errorf("look up the file system of %s: %w", c.Dir, err)
	}
	if s.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("%s is on a file system of type %#x; choose a folder under /run: %w", c.Dir, uint32(s.Type), ErrFileSystem)
	}
	return nil
}

// mapRing maps the file and locks it in memory. The mapping outlives the descriptor.
func mapRing(f *os.File, path string, size int64) (*Ring, error) {
	mem, err := unix.Mmap(int(f.Fd()), 0, int(size), unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED|unix.MAP_POPULATE)
	if err != nil {
		return nil, fmt.Errorf("map ring %s: %w", path, err)
	}
	r := &Ring{path: path, mem: mem, freed: make(chan struct{})}
	switch err := unix.Mlock(mem); {
	case errors.Is(err, unix.EPERM), errors.Is(err, unix.ENOMEM):
		// Nothing is lost by swapping; but an append may then wait for a disk, which may be the one that waits for the append.
		r.warning = fmt.Errorf("lock ring %s in memory: %w; raise the process's limit of locked memory by %d bytes", path, err, size)
	case err != nil:
		_ = unix.Munmap(mem)
		return nil, fmt.Errorf("lock ring %s in memory: %w", path, err)
	}
	return r, nil
}

package fsys

import (
	"fmt"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Mem is a file system in memory that knows what a power cut would leave of it. It is for tests, and is as forgetful as the contract allows:
//
//   - Every 512-byte sector holds its last durable content or any later write of its own; sectors are independent of one another.
//   - Sync makes its own file durable, and every direct write to any file of the same device, as long as the write went to a block that was written
//     and synced before. A direct write to a hole or an unwritten extent needs a Sync of its own file, which records that it is written now.
//   - A Sync or SyncDir vouches only for what had returned when it began.
//   - Space in a file is there for good when a Sync of the file began after Allocate, or the first write, returned; Grew counts writes that had none.
//   - A file's size and a folder's names survive as they were at the last Sync or SyncDir, or as one of the later changes left them. A rename across
//     folders makes both folders durable.
//
// It is sparse: zeroes take no memory. All files are on one device unless AddDevice says otherwise.
type Mem struct {
	mu         sync.Mutex
	root       *memNode
	devices    []*memDevice // the first one holds the root
	during     func(Op, string)
	clock      uint64             // counts changes
	numbers    int32              // nodes made
	operations int                // writes and syncs begun
	writes     map[int]*memChange // under way
	syncs      map[int]uint64     // under way, and when they began
	tape       *Tape              // nil: nothing is recorded
}

var _ FS = (*Mem)(nil)

// memDevice is what one flush flushes.
type memDevice struct {
	id     uint64
	prefix string
	total  int64
	typ    string
	dirty  map[*memPage]struct{} // pages with direct writes that a flush of the device makes durable
}

// memNode is a file or a folder.
type memNode struct {
	number int32
	device *memDevice
	mtime  time.Time
	data   *memData // of a file; nil: a folder
	holder *memFile // has the lock

	names   map[string]*memNode // of a folder, now
	durable map[string]*memNode // as of the last SyncDir
	later   []memNames          // after each change since
}

// memNames are a folder's names after a change.
type memNames struct {
	names map[string]*memNode
	when  uint64
}

// NewMem makes an empty file system that says it is XFS of 1 TiB.
func NewMem() *Mem {
	m := &Mem{writes: map[int]*memChange{}, syncs: map[int]uint64{}}
	m.devices = []*memDevice{{id: 1, prefix: "/", total: 1 << 40, typ: "xfs", dirty: map[*memPage]struct{}{}}}
	m.root = m.newNode(m.devices[0], true, 0)
	return m
}

func (m *Mem) number() int32 {
	m.numbers++
	return m.numbers
}

func (m *Mem) newNode(d *memDevice, folder bool, number int32) *memNode {
	m.numbers = max(m.numbers, number)
	n := &memNode{number: number, device: d, mtime: time.Now()}
	if folder {
		n.names, n.durable = map[string]*memNode{}, map[string]*memNode{}
	} else {
		n.data = newMemData(d)
	}
	return n
}

// AddDevice puts a new, durable folder on a device of its own, as if one were mounted there.
func (m *Mem) AddDevice(folder string) error {
	if err := m.MkdirAll(folder); err != nil {
		return err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.find("add device", folder)
	if err != nil {
		return err
	}
	if len(node.names) > 0 {
		return pathError("add device", folder, unix.ENOTEMPTY)
	}
	node.device = &memDevice{
		id: uint64(len(m.devices) + 1), prefix: filepath.Clean(folder), total: 1 << 40, typ: "xfs", dirty: map[*memPage]struct{}{},
	}
	m.devices = append(m.devices, node.device)
	for at := m.root; at != node; {
		next, _, _ := strings.Cut(strings.TrimPrefix(strings.TrimPrefix(node.device.prefix, m.path(at)), "/"), "/")
		at.settle()
		at = at.names[next]
	}
	return nil
}

// path finds a folder's path by looking; only for AddDevice.
func (m *Mem) path(want *memNode) string {
	var walk func(n *memNode, at string) (string, bool)
	walk = func(n *memNode, at string) (string, bool) {
		if n == want {
			return at, true
		}
		for name, child := range n.names {
			if found, ok := walk(child, filepath.Join(at, name)); ok {
				return found, true
			}
		}
		return "", false
	}
	found, _ := walk(m.root, "/")
	return found
}

// During has hook called in the middle of every write and sync, when a power cut may leave any part of it: for tests that call CrashClone there.
func (m *Mem) During(hook func(op Op, name string)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.during = hook
}

// Grew counts the writes of a block to files of this name (filepath.Match) that a full file system might have refused, now or after a power cut: the block
// had no space that was there durably.
func (m *Mem) Grew(glob string) (n int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	var walk func(node *memNode)
	walk = func(node *memNode) {
		for name, child := range node.names {
			if ok, _ := filepath.Match(glob, name); ok && child.data != nil {
				n += child.data.grew
			}
			walk(child)
		}
	}
	walk(m.root)
	return n
}

// changed notes a folder's new state, which a power cut may or may not leave.
func (n *memNode) changed(now uint64) { n.later = append(n.later, memNames{maps.Clone(n.names), now}) }

// settle makes a folder's present names durable.
func (n *memNode) settle() { n.durable, n.later = maps.Clone(n.names), nil }

// sync makes the names durable that a folder had at a moment.
func (n *memNode) sync(then uint64) {
	for len(n.later) > 0 && n.later[0].when <= then {
		n.durable, n.later = n.later[0].names, n.later[1:]
	}
}

func (m *Mem) find(op, name string) (*memNode, error) {
	if !filepath.IsAbs(name) {
		return nil, pathError(op, name, fmt.Errorf("names are absolute paths: %w", unix.EINVAL))
	}
	at := m.root
	for part := range strings.SplitSeq(strings.Trim(filepath.Clean(name), "/"), "/") {
		if part == "" {
			continue
		}
		if at.data != nil {
			return nil, pathError(op, name, unix.ENOTDIR)
		}
		next, ok := at.names[part]
		if !ok {
			return nil, pathError(op, name, unix.ENOENT)
		}
		at = next
	}
	return at, nil
}

// parent finds the folder that holds, or would hold, name.
func (m *Mem) parent(op, name string) (folder *memNode, base string, err error) {
	folder, err = m.find(op, filepath.Dir(filepath.Clean(name)))
	if err != nil {
		return nil, "", pathError(op, name, unwrapPath(err))
	}
	if folder.data != nil {
		return nil, "", pathError(op, name, unix.ENOTDIR)
	}
	return folder, filepath.Base(name), nil
}

func unwrapPath(err error) error {
	if pe, ok := err.(*fs.PathError); ok {
		return pe.Err
	}
	return err
}

// Open implements FS.
func (m *Mem) Open(name string, flags OpenFlags) (File, error) {
	if _, err := openMode(name, flags); err != nil {
		return nil, err
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	folder, base, err := m.parent("open", name)
	if err != nil {
		return nil, err
	}
	node := folder.names[base]
	switch {
	case node == nil && flags&Create == 0:
		return nil, pathError("open", name, unix.ENOENT)
	case node == nil:
		node = m.do(Step{Kind: stepMake, Name: base}, folder, nil)
	case flags&Exclusive != 0:
		return nil, pathError("open", name, unix.EEXIST)
	case node.data == nil:
		return nil, pathError("open", name, unix.EISDIR)
	}
	if flags&Truncate != 0 {
		m.do(Step{Kind: stepTruncate}, node, nil)
	}
	return &memFile{fs: m, node: node, name: name, flags: flags}, nil
}

// MkdirAll implements FS.
func (m *Mem) MkdirAll(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := m.root
	for part := range strings.SplitSeq(strings.Trim(filepath.Clean(name), "/"), "/") {
		if part == "" {
			continue
		}
		next, ok := at.names[part]
		if !ok {
			next = m.do(Step{Kind: stepMkdir, Name: part}, at, nil)
		}
		if next.data != nil {
			return pathError("mkdir", name, unix.ENOTDIR)
		}
		at = next
	}
	return nil
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	folder, base, err := m.parent("remove", name)
	if err != nil {
		return err
	}
	node, ok := folder.names[base]
	if !ok {
		return pathError("remove", name, unix.ENOENT)
	}
	if len(node.names) > 0 {
		return pathError("remove", name, unix.ENOTEMPTY)
	}
	m.do(Step{Kind: stepRemove, Name: base}, folder, nil)
	return nil
}

// RemoveAll implements FS. What it removes goes in one step.
func (m *Mem) RemoveAll(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	folder, base, err := m.parent("remove", name)
	if err != nil {
		return nil // nothing is there
	}
	if _, ok := folder.names[base]; ok {
		m.do(Step{Kind: stepRemove, Name: base}, folder, nil)
	}
	return nil
}

// Rename implements FS.
func (m *Mem) Rename(from, to string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	source, fromBase, err := m.parent("rename", from)
	if err != nil {
		return err
	}
	node, ok := source.names[fromBase]
	if !ok {
		return pathError("rename", from, unix.ENOENT)
	}
	target, toBase, err := m.parent("rename", to)
	if err != nil {
		return err
	}
	old := target.names[toBase]
	switch {
	case target.device != source.device:
		return pathError("rename", to, unix.EXDEV)
	case old != nil && old.data == nil && (node.data != nil || len(old.names) > 0):
		return pathError("rename", to, unix.EEXIST)
	case old != nil && old.data != nil && node.data == nil:
		return pathError("rename", to, unix.ENOTDIR)
	}
	m.do(Step{Kind: stepRename, Name: fromBase, To: toBase}, source, target)
	return nil
}

// ReadDir implements FS.
func (m *Mem) ReadDir(name string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.find("read folder", name)
	if err != nil {
		return nil, err
	}
	if node.data != nil {
		return nil, pathError("read folder", name, unix.ENOTDIR)
	}
	return slices.Sorted(maps.Keys(node.names)), nil
}

// Stat implements FS.
func (m *Mem) Stat(name string) (fs.FileInfo, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.find("stat", name)
	if err != nil {
		return nil, err
	}
	info := memInfo{name: filepath.Base(name), dir: node.data == nil, mtime: node.mtime}
	if node.data != nil {
		info.size = node.data.size
	}
	return info, nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(name string) error {
	m.mu.Lock()
	node, err := m.find("sync folder", name)
	if err == nil && node.data != nil {
		err = pathError("sync folder", name, unix.ENOTDIR)
	}
	if err != nil {
		m.mu.Unlock()
		return err
	}
	during := m.during
	s := Step{Kind: stepSyncDir, Operation: m.operation()}
	m.do(s, node, nil)
	m.mu.Unlock()
	if during != nil {
		during(OpSyncDir, name)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Kind = stepSyncedDir
	m.do(s, node, nil)
	return nil
}

// Usage implements FS. It counts what is held in memory as used.
func (m *Mem) Usage(name string) (Usage, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	node, err := m.find("statfs", name)
	if err != nil {
		return Usage{}, err
	}
	used := int64(0)
	var walk func(n *memNode)
	walk = func(n *memNode) {
		if n.data != nil && n.device == node.device {
			used += int64(len(n.data.pages)) * pageSize
		}
		for _, child := range n.names {
			walk(child)
		}
	}
	walk(m.root)
	return Usage{Type: node.device.typ, Total: node.device.total, Available: node.device.total - used, Device: node.device.id}, nil
}

type memInfo struct {
	name  string
	size  int64
	dir   bool
	mtime time.Time
}

func (i memInfo) Name() string       { return i.name }
func (i memInfo) Size() int64        { return i.size }
func (i memInfo) ModTime() time.Time { return i.mtime }
func (i memInfo) IsDir() bool        { return i.dir }
func (i memInfo) Sys() any           { return nil }

func (i memInfo) Mode() fs.FileMode {
	if i.dir {
		return fs.ModeDir | 0o700
	}
	return 0o600
}

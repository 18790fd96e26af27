package metafs

import (
	iofs "io/fs"
	"maps"
	"math/rand/v2"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// subsetFS is a file system of which a power cut keeps any subset of the changes of names that no sync of their folder covered. fsys.Mem, which keeps
// the files' content here, only ever loses the last ones. A rename is one change, and what happened to a file later is not kept without what happened
// to it before; of two files that had a name, one after the other, either may be left with it.
type subsetFS struct {
	mem *fsys.Mem

	mu      sync.Mutex
	folders map[string]*subsetFolder
	made    int
}

type subsetFolder struct {
	names, durable map[string]string // to the file in /files
	settled        int               // changes that are durable
	later          []nameChange
}

// nameChange takes a file from one name, gives it another, or both.
type nameChange struct{ file, from, to string }

func (c nameChange) apply(names map[string]string) {
	if names[c.from] == c.file {
		delete(names, c.from)
	}
	if c.to != "" {
		names[c.to] = c.file
	}
}

var _ fsys.FS = (*subsetFS)(nil)

func newSubsetFS() *subsetFS {
	s := &subsetFS{mem: fsys.NewMem(), folders: map[string]*subsetFolder{}}
	if err := s.mem.MkdirAll("/files"); err != nil {
		panic(err)
	}
	if err := s.mem.SyncDir("/"); err != nil {
		panic(err)
	}
	return s
}

// crash is fsys.Mem's CrashClone, kill its KillClone.
func (s *subsetFS) crash(rng *rand.Rand) *subsetFS {
	return s.clone(s.mem.CrashClone, rng, func(f *subsetFolder) *subsetFolder {
		left, lost := maps.Clone(f.durable), map[string]bool{}
		keep := [...]float64{0, 0.5, 0.9, 1}[rng.IntN(4)]
		for _, c := range f.later {
			if lost[c.file] = lost[c.file] || rng.Float64() >= keep; !lost[c.file] {
				c.apply(left)
			}
		}
		return &subsetFolder{names: left, durable: maps.Clone(left)}
	})
}

func (s *subsetFS) kill(rng *rand.Rand) *subsetFS {
	return s.clone(s.mem.KillClone, rng, func(f *subsetFolder) *subsetFolder {
		return &subsetFolder{names: maps.Clone(f.names), durable: maps.Clone(f.durable), later: slices.Clone(f.later)}
	})
}

func (s *subsetFS) clone(content func(*rand.Rand) *fsys.Mem, rng *rand.Rand, folder func(*subsetFolder) *subsetFolder) *subsetFS {
	s.mu.Lock()
	defer s.mu.Unlock()
	left := &subsetFS{mem: content(rng), folders: map[string]*subsetFolder{}, made: s.made}
	for _, name := range slices.Sorted(maps.Keys(s.folders)) {
		left.folders[name] = folder(s.folders[name])
	}
	return left
}

func (s *subsetFS) folder(name string) (f *subsetFolder, base string, err error) {
	if f = s.folders[filepath.Dir(name)]; f == nil {
		return nil, "", &iofs.PathError{Op: "find folder", Path: name, Err: unix.ENOENT}
	}
	return f, filepath.Base(name), nil
}

func (f *subsetFolder) change(c nameChange) {
	c.apply(f.names)
	f.later = append(f.later, c)
}

func (s *subsetFS) Open(name string, flags fsys.OpenFlags) (fsys.File, error) {
	s.mu.Lock()
	f, base, err := s.folder(name)
	if err != nil {
		s.mu.Unlock()
		return nil, err
	}
	file, ok := f.names[base]
	s.made++
	if !ok && flags&fsys.Create != 0 {
		file = "/files/" + strconv.Itoa(s.made)
	}
	s.mu.Unlock()
	switch {
	case !ok && flags&fsys.Create == 0:
		return nil, &iofs.PathError{Op: "open", Path: name, Err: unix.ENOENT}
	case ok && flags&fsys.Exclusive != 0:
		return nil, &iofs.PathError{Op: "open", Path: name, Err: unix.EEXIST}
	}
	opened, err := s.mem.Open(file, flags)
	if err != nil {
		return nil, err
	}
	if !ok {
		// The file itself is not what is lost, only the name that it gets now.
		if err := s.mem.SyncDir("/files"); err != nil {
			return nil, err
		}
		s.mu.Lock()
		f.change(nameChange{file: file, to: base})
		s.mu.Unlock()
	}
	return subsetFile{opened, name}, nil
}

type subsetFile struct {
	fsys.File
	name string
}

func (f subsetFile) Name() string { return f.name }

func (s *subsetFS) MkdirAll(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; s.folders[name] == nil; name = filepath.Dir(name) {
		s.folders[name] = &subsetFolder{names: map[string]string{}, durable: map[string]string{}}
	}
	return nil
}

func (s *subsetFS) Remove(name string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, base, err := s.folder(name)
	if err != nil {
		return err
	}
	file, ok := f.names[base]
	if !ok {
		return &iofs.PathError{Op: "remove", Path: name, Err: unix.ENOENT}
	}
	f.change(nameChange{file: file, from: base})
	return nil
}

func (s *subsetFS) RemoveAll(name string) error { return s.Remove(name) }

func (s *subsetFS) Rename(from, to string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	f, base, err := s.folder(from)
	if err != nil {
		return err
	}
	file, ok := f.names[base]
	if !ok || filepath.Dir(from) != filepath.Dir(to) {
		return &iofs.PathError{Op: "rename", Path: from, Err: unix.ENOENT}
	}
	f.change(nameChange{file: file, from: base, to: filepath.Base(to)})
	return nil
}

func (s *subsetFS) ReadDir(name string) ([]string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.folders[name]
	if f == nil {
		return nil, &iofs.PathError{Op: "read folder", Path: name, Err: unix.ENOENT}
	}
	names := slices.Collect(maps.Keys(f.names))
	for folder := range s.folders {
		if filepath.Dir(folder) == name && folder != name {
			names = append(names, filepath.Base(folder))
		}
	}
	slices.Sort(names)
	return names, nil
}

func (s *subsetFS) Stat(name string) (iofs.FileInfo, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.folders[name] != nil {
		return s.mem.Stat("/files")
	}
	f, base, err := s.folder(name)
	if err != nil {
		return nil, err
	}
	file, ok := f.names[base]
	if !ok {
		return nil, &iofs.PathError{Op: "stat", Path: name, Err: unix.ENOENT}
	}
	return s.mem.Stat(file)
}

// SyncDir vouches for what had been done when it began.
func (s *subsetFS) SyncDir(name string) error {
	s.mu.Lock()
	f := s.folders[strings.TrimSuffix(name, "/")]
	if f == nil {
		s.mu.Unlock()
		return nil // the root
	}
	covered := f.settled + len(f.later)
	s.mu.Unlock()
	if err := s.mem.SyncDir("/files"); err != nil { // for its hook
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for ; f.settled < covered; f.settled++ { // another sync may have ended meanwhile
		f.later[0].apply(f.durable)
		f.later = f.later[1:]
	}
	return nil
}

func (s *subsetFS) Usage(string) (fsys.Usage, error) { return s.mem.Usage("/") }

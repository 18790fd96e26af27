package metafs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/cockroachdb/pebble/v2"
)

const (
	// logFolder holds the slots and nothing else, so that a sync of Pebble's for a log is known from one for a table.
	logFolder  = "log"
	slotPrefix = "slot-"
	logSuffix  = ".log"
	newSuffix  = ".new" // of a slot that is being made, instead
	// slotHeader is how long the header is: a block, so that the log behind it is aligned. Only its first 20 bytes say something.
	slotHeader  = logBlock
	headerBytes = 24
	headerMagic = "RWNLOG01"
	// keepFree is how many slots without a log are kept for the next ones.
	keepFree = 4
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// slots are the files that hold the logs. A slot's name never changes; its header says whose log it holds. See the package's comment for the
// promises.
type slots struct {
	fs *FS

	mu      sync.Mutex
	dir     string            // "" until it was looked at
	byLog   map[uint64]string // the slot of each log, by its path
	free    []string          // slots with no log, or one that Pebble has removed
	begun   []string          // slots that a crash left unfinished
	next    uint64            // number for the next new slot's name: above every one that was there
	settled bool              // the names of what was there are durable
	busy    chan struct{}     // closed when the preparation under way ends; nil: none is
	closed  bool
}

func inLogFolder(name string) bool { return filepath.Base(filepath.Dir(name)) == logFolder }

// isLog tells whether a path is that of one of Pebble's logs.
func isLog(name string) bool { return inLogFolder(name) && strings.HasSuffix(name, logSuffix) }

func isLogFolder(name string) bool { return filepath.Base(name) == logFolder }

func logName(log uint64) string { return fmt.Sprintf("%06d%s", log, logSuffix) }

func parseLog(name string) (uint64, error) {
	base := filepath.Base(name)
	log, err := strconv.ParseUint(strings.TrimSuffix(base, logSuffix), 10, 64)
	if err != nil || log == 0 || logName(log) != base {
		return 0, fmt.Errorf("log %s: its name is not a number", name)
	}
	return log, nil
}

func parseSlot(base string) (number uint64, ok bool) {
	digits, prefix := strings.CutPrefix(base, slotPrefix)
	number, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimSuffix(digits, logSuffix), newSuffix), 10, 32)
	return number, prefix && err == nil
}

// encodeHeader fills a header's block: magic, the log's number, the checksum of both.
func encodeHeader(p []byte, log uint64) {
	clear(p)
	copy(p, headerMagic)
	binary.LittleEndian.PutUint64(p[8:], log)
	binary.LittleEndian.PutUint32(p[16:], crc32.Checksum(p[:16], castagnoli))
}

// decodeHeader reads a slot's first two blocks. 0: it never had a log, so there are only zeroes.
func decodeHeader(p []byte) (log uint64, err error) {
	if !slices.ContainsFunc(p, func(b byte) bool { return b != 0 }) {
		return 0, nil
	}
	if len(p) < slotHeader || string(p[:8]) != headerMagic {
		return 0, fmt.Errorf("%w: its header is damaged", pebble.ErrCorruption)
	}
	want := crc32.Checksum(p[:16], castagnoli)
	log = binary.LittleEndian.Uint64(p[8:])
	if got := binary.LittleEndian.Uint32(p[16:]); got != want || log == 0 {
		return 0, fmt.Errorf("%w: its header is damaged: checksum %08x, want %08x", pebble.ErrCorruption, got, want)
	}
	return log, nil
}

// load finds out which logs there are. It changes nothing, so that a DB can be opened for looking only.
func (s *slots) load(dir string) error {
	if s.dir == dir {
		return nil
	}
	if s.dir != "" {
		return fmt.Errorf("logs in %s: this file system has those in %s", dir, s.dir)
	}
	names, err := s.fs.fsys.ReadDir(dir)
	if err != nil {
		return err
	}
	s.byLog, s.free, s.begun, s.next = map[uint64]string{}, nil, nil, 1
	for _, name := range names {
		number, ok := parseSlot(name)
		if !ok {
			continue
		}
		s.next = max(s.next, number+1)
		path := filepath.Join(dir, name)
		if strings.HasSuffix(path, newSuffix) {
			s.begun = append(s.begun, path)
			continue
		}
		log, err := s.look(path)
		switch {
		case err != nil:
			return fmt.Errorf("look at log %s: %w", path, err)
		case log == 0:
			s.free = append(s.free, path)
		case s.byLog[log] != "":
			return fmt.Errorf("%w: log %d is in %s and in %s", pebble.ErrCorruption, log, s.byLog[log], path)
		default:
			s.byLog[log] = path
		}
	}
	s.dir = dir
	return nil
}

func (s *slots) look(path string) (log uint64, err error) {
	f, err := s.fs.fsys.Open(path, 0)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	p := make([]byte, 2*slotHeader)
	n, err := f.ReadAt(p, 0)
	if err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	if s.fs.mutation == mutateBlind {
		return 0, nil
	}
	return decodeHeader(p[:n])
}

// settle makes the names of what a dead process left durable, before one of those slots is used; its last preparation may have ended without that. It
// is done as the DB opens. The logs that are there need it not: their slots' names were durable before the headers were written.
func (s *slots) settle() error {
	if s.settled {
		return nil
	}
	for _, path := range s.begun {
		if err := s.fs.fsys.Remove(path); err != nil {
			return err
		}
	}
	s.begun = nil
	if s.fs.mutation != mutateUnsettled {
		if err := s.fs.retry(func() error { return s.fs.fsys.SyncDir(s.dir) }); err != nil {
			return err
		}
	}
	s.settled = true
	return nil
}

// take finds a slot for a new log: a free one, one under preparation, or else one that is made now.
func (s *slots) take(dir string) (string, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return "", fmt.Errorf("metadata file system: %w", fs.ErrClosed)
	}
	if err := s.load(dir); err != nil {
		return "", err
	}
	if err := s.settle(); err != nil {
		return "", err
	}
	if busy := s.busy; len(s.free) == 0 && busy != nil {
		s.mu.Unlock()
		<-busy
		s.mu.Lock()
	}
	if len(s.free) == 0 {
		path := s.name()
		if err := s.fs.prewrite(path); err != nil {
			return "", err
		}
		return path, nil
	}
	path := s.free[0]
	s.free = s.free[1:]
	return path, nil
}

// name is one that no slot has had in this process, so that an unsynced removal and an unsynced creation never meet in one name.
func (s *slots) name() string {
	path := filepath.Join(s.dir, fmt.Sprintf("%s%d%s", slotPrefix, s.next, logSuffix))
	s.next++
	return path
}

// prepare makes a slot in the background if none is free. If that does not work, the next log's is made when it is needed, and tells why it cannot
// be.
func (s *slots) prepare() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed || s.busy != nil || len(s.free) > 0 {
		return
	}
	busy, path := make(chan struct{}), s.name()
	s.busy = busy
	go func() {
		err := s.fs.prewrite(path)
		s.mu.Lock()
		defer s.mu.Unlock()
		if err == nil {
			s.free = append(s.free, path)
		}
		s.busy = nil
		close(busy)
	}()
}

func (s *slots) wait() {
	s.mu.Lock()
	busy := s.busy
	s.mu.Unlock()
	if busy != nil {
		<-busy
	}
}

func (s *slots) close() {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.wait()
}

// find returns the slot of a log.
func (s *slots) find(name string) (path string, err error) {
	log, err := parseLog(name)
	if err != nil {
		return "", err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.load(filepath.Dir(name)); err != nil {
		return "", err
	}
	path, ok := s.byLog[log]
	if !ok {
		return "", &fs.PathError{Op: "open log", Path: name, Err: fs.ErrNotExist}
	}
	return path, nil
}

// given notes what a slot's header says now; old is the log it held, or 0.
func (s *slots) given(path string, old, log uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byLog, old)
	s.byLog[log] = path
}

// unused returns the number of a log that is to be made. Pebble never gives a number twice; a second log of it would cover the first one.
func (s *slots) unused(name string) (uint64, error) {
	log, err := parseLog(name)
	if err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if path, ok := s.byLog[log]; ok {
		return 0, fmt.Errorf("log %s is there already, in %s", name, path)
	}
	return log, nil
}

// remove takes a log away. Its header stays until the slot's next log, so after a crash it may be there once more. That is harmless: Pebble removes,
// and recycles, only a log whose number is below the lowest one that the synced manifest says is needed, and does so again when it opens.
func (s *slots) remove(name string) error {
	path, err := s.find(name)
	if err != nil {
		return err
	}
	log, err := parseLog(name)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byLog, log)
	if len(s.free) >= keepFree {
		return s.fs.fsys.Remove(path)
	}
	s.free = append(s.free, path)
	return nil
}

// list returns the names of the logs.
func (s *slots) list(dir string) (names []string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.load(dir); err != nil {
		return nil, err
	}
	for _, log := range slices.Sorted(maps.Keys(s.byLog)) {
		names = append(names, logName(log))
	}
	return names, nil
}

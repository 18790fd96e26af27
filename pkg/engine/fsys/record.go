package fsys

import (
	"fmt"
	"strings"
	"sync"
)

// Event is a call that changed something or made something durable, and how it ended.
type Event struct {
	Call
	Err error
}

// String is one line: the kind of call, the name, and where it applies offset+length.
func (e Event) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s", e.Op, e.Name)
	switch e.Op {
	case OpRename:
		fmt.Fprintf(&b, " %s", e.To)
	case OpWrite, OpWriteDurable, OpAllocate, OpPunch:
		fmt.Fprintf(&b, " %d+%d", e.Off, e.Len)
	case OpTruncate:
		fmt.Fprintf(&b, " %d", e.Off)
	case OpOpen:
		for i, name := range []string{"create", "exclusive", "write", "direct", "truncate"} {
			if e.Flags&(1<<i) != 0 {
				fmt.Fprintf(&b, " %s", name)
			}
		}
	}
	if e.Err != nil {
		fmt.Fprintf(&b, ": %v", e.Err)
	}
	return b.String()
}

// Recorder keeps the order of what was done to an FS, for golden texts. Reads and look-ups are left out, and openings that make no file.
//
// A sync counts from when it began, everything else from when it returned: so what stands before a sync in the record was done when the sync began.
type Recorder struct {
	hooked

	mu     sync.Mutex
	events []Event
}

var _ FS = (*Recorder)(nil)

// Record wraps an FS.
func Record(fs FS) *Recorder {
	r := &Recorder{}
	r.hooked = hooked{fs: fs, around: r.around}
	return r
}

func (r *Recorder) around(c Call, do func() error) error {
	switch c.Op {
	case OpReadDir, OpStat, OpUsage, OpRead, OpSize, OpClose:
		return do()
	case OpOpen:
		if c.Flags&(Create|Truncate) == 0 {
			return do()
		}
	case OpSync, OpSyncDir:
		i := r.add(Event{Call: c})
		err := do()
		r.mu.Lock()
		defer r.mu.Unlock()
		if i < len(r.events) && r.events[i].Call == c {
			r.events[i].Err = err
		}
		return err
	}
	err := do()
	r.add(Event{Call: c, Err: err})
	return err
}

func (r *Recorder) add(e Event) int {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
	return len(r.events) - 1
}

// Events returns what was recorded since the last Reset.
func (r *Recorder) Events() []Event {
	r.mu.Lock()
	defer r.mu.Unlock()
	return append([]Event(nil), r.events...)
}

// Reset forgets what was recorded.
func (r *Recorder) Reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = nil
}

// Text is the record, a line each, with a folder's path cut off from the names.
func (r *Recorder) Text(folder string) string {
	var b strings.Builder
	for _, e := range r.Events() {
		b.WriteString(strings.ReplaceAll(e.String(), strings.TrimSuffix(folder, "/")+"/", ""))
		b.WriteByte('\n')
	}
	return b.String()
}

package fsys

import (
	"path/filepath"
	"sync"
)

// Rule says which calls fail, and how. The zero value of a field does not restrict.
type Rule struct {
	Op    Op
	Glob  string // of the whole name, or of its last element; filepath.Match
	After int    // lets so many matching calls pass first
	Times int    // fails so many, then no more; 0: all
	Err   error
	Late  bool // do the call and then report Err, as a flush does that lost something on its way
	Short bool // of a read or write, do the first half, in sectors, and then report Err
	// When, if set, is asked after the above matched; it may also wait, to hold a call up, or look at what is there at that moment. With Err nil the
	// call is then done.
	When func(Call) bool

	seen, failed int
}

// FaultFS fails chosen calls of another FS. The first rule that matches counts.
type FaultFS struct {
	hooked

	mu    sync.Mutex
	rules []*Rule
}

var _ FS = (*FaultFS)(nil)

// Fault wraps an FS. Rules may be given now or added later.
func Fault(fs FS, rules ...Rule) *FaultFS {
	f := &FaultFS{}
	f.hooked = hooked{fs: fs, around: f.around}
	for _, r := range rules {
		f.Add(r)
	}
	return f
}

// Add adds a rule behind the ones there are.
func (f *FaultFS) Add(r Rule) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = append(f.rules, &r)
}

// Clear removes all rules.
func (f *FaultFS) Clear() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.rules = nil
}

func (f *FaultFS) around(c Call, do func() error) error {
	r, ok := f.match(c)
	if !ok || r.Err == nil || (r.When != nil && !r.When(c)) {
		if ok && r.Err == nil && r.When != nil {
			r.When(c)
		}
		return do()
	}
	if r.Short && c.part != nil {
		*c.part = c.Len / 2 / sectorSize * sectorSize
	}
	if r.Late || r.Short {
		if err := do(); err != nil {
			return err
		}
	}
	return pathError(string(c.Op), c.Name, r.Err)
}

// match returns a copy of the rule that applies; the lock is not held while its When waits.
func (f *FaultFS) match(c Call) (Rule, bool) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.rules {
		if (r.Op != "" && r.Op != c.Op) || !r.matchName(c) {
			continue
		}
		if r.seen++; r.seen <= r.After {
			continue
		}
		if r.Times > 0 && r.failed == r.Times {
			continue
		}
		r.failed++
		return *r, true
	}
	return Rule{}, false
}

func (r *Rule) matchName(c Call) bool {
	if r.Glob == "" {
		return true
	}
	for _, name := range []string{c.Name, filepath.Base(c.Name)} {
		if ok, _ := filepath.Match(r.Glob, name); ok {
			return true
		}
	}
	return false
}

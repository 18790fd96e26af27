package engine

import (
	"cmp"
	"flag"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

var (
	ioAll  = flag.Bool("ioerror.all", false, "fail every call site with every error, at several of its calls")
	ioSite = flag.String("ioerror.site", "", "fail only sites that contain this")
)

// ioFault is how a call fails.
type ioFault struct {
	name  string
	err   error
	short bool // half of the write is done
	late  bool // all of it
	good  bool // every later call fails, too
}

var ioFaults = []ioFault{
	{name: "EIO", err: unix.EIO},
	{name: "ENOSPC", err: unix.ENOSPC},
	{name: "short", err: unix.EIO, short: true},
	{name: "EIO after it was done", err: unix.EIO, late: true},
	{name: "EIO from then on", err: unix.EIO, good: true},
}

// fits tells whether a call can fail so.
func (f ioFault) fits(op fsys.Op) bool {
	switch {
	case f.short:
		return op == fsys.OpWrite || op == fsys.OpWriteDurable
	case f.err == unix.ENOSPC:
		return slices.Contains([]fsys.Op{fsys.OpOpen, fsys.OpMkdirAll, fsys.OpRename, fsys.OpWrite, fsys.OpWriteDurable, fsys.OpSync, fsys.OpSyncDir,
			fsys.OpTruncate, fsys.OpAllocate}, op)
	case f.late:
		return op != fsys.OpRead && op != fsys.OpClose && op != fsys.OpLock
	default:
		return op != fsys.OpClose
	}
}

// ioPlan fails one call of a site: the nth.
type ioPlan struct {
	fault ioFault
	site  string
	nth   int

	mu   sync.Mutex
	seen map[string]int
	hit  *fsys.Call
	off  bool // nothing fails any more
}

func (p *ioPlan) String() string {
	return fmt.Sprintf("%s at call %d of %s", p.fault.name, p.nth, p.site)
}

func (p *ioPlan) rule() fsys.Rule {
	return fsys.Rule{Err: cmp.Or[error](p.fault.err, unix.EIO), Short: p.fault.short, Late: p.fault.late, When: p.when}
}

func (p *ioPlan) when(c fsys.Call) bool {
	if !strings.HasPrefix(c.Name, "/pool") {
		return false
	}
	site := siteOf(c)
	p.mu.Lock()
	defer p.mu.Unlock()
	p.seen[site]++
	switch {
	case p.off:
		return false
	case p.hit != nil:
		return p.fault.good && c.Op != fsys.OpClose
	case site != p.site || p.seen[site] != p.nth:
		return false
	}
	p.hit = &c
	return true
}

func (p *ioPlan) wasHit() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.hit != nil
}

func (p *ioPlan) stop() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.off = true
}

// siteOf names a call site: the call, the kind of file, and the functions that lead to it, innermost first.
func siteOf(c fsys.Call) string {
	var pcs [40]uintptr
	frames := runtime.CallersFrames(pcs[:runtime.Callers(4, pcs[:])])
	var names []string
	for more := true; more && len(names) < 9; {
		var f runtime.Frame
		f, more = frames.Next()
		_, name, _ := strings.Cut(f.Function, "rowan/pkg/engine")
		pebble := strings.Contains(f.Function, "cockroachdb/pebble")
		if pebble {
			name = f.Function[strings.LastIndex(f.Function, "/")+1:]
		}
		test := strings.HasSuffix(f.File, "_test.go")
		if (name == "" && !pebble) || test || strings.HasPrefix(name, "/fsys") {
			continue
		}
		names = append(names, strings.TrimPrefix(strings.TrimPrefix(name, "/"), "."))
	}
	kind := filepath.Ext(c.Name)
	if base := filepath.Base(c.Name); kind == "" {
		kind = strings.TrimRight(base, "0123456789")
	}
	return fmt.Sprintf("%s %s in %s", c.Op, kind, strings.Join(names, " < "))
}

// TestIOErrors fails the calls of a workload, one after the other, and looks at what the engine makes of it: the call fails or the pool has failed, nothing
// wrong is ever returned, nothing panics or hangs, another pool goes on, and a pool that has failed is so for the next process of the boot.
func TestIOErrors(t *testing.T) {
	none := &ioPlan{seen: map[string]int{}}
	if err := runIO(t, none); err != nil {
		t.Fatalf("without a fault: %v", err)
	}
	r := rand.New(rand.NewPCG(1, 1))
	runs, missed := 0, 0
	for _, site := range sortedKeys(none.seen) {
		if !strings.Contains(site, *ioSite) {
			continue
		}
		for _, p := range plansOf(site, none.seen[site], r) {
			if err := runIO(t, p); err != nil {
				t.Errorf("%v: %v", p, err)
			}
			if runs++; !p.wasHit() {
				missed++
			}
		}
	}
	t.Logf("%d call sites, %d faults, %d of them at calls that did not come", len(none.seen), runs, missed)
	if *ioSite == "" && (runs < 100 || missed > runs/3) {
		t.Error("too few")
	}
}

// plansOf chooses what to try at a site with so many calls.
func plansOf(site string, calls int, r *rand.Rand) (plans []*ioPlan) {
	op, _, _ := strings.Cut(site, " ")
	var fit []ioFault
	for _, f := range ioFaults {
		if f.fits(fsys.Op(op)) {
			fit = append(fit, f)
		}
	}
	if len(fit) == 0 {
		return nil
	}
	add := func(f ioFault, nth int) {
		plans = append(plans, &ioPlan{fault: f, site: site, nth: nth, seen: map[string]int{}})
	}
	if !*ioAll {
		add(fit[r.IntN(len(fit))], 1+r.IntN(calls))
		return plans
	}
	nths := []int{1, 2, 1 + calls/2, calls, 1 + r.IntN(calls), 1 + r.IntN(calls)}
	slices.Sort(nths)
	for _, nth := range slices.Compact(nths) {
		for _, f := range fit {
			if nth <= calls {
				add(f, nth)
			}
		}
	}
	return plans
}

// ioLimit is how long one run may take before it counts as hanging.
const ioLimit = 30 * time.Second

func runIO(t *testing.T, p *ioPlan) error {
	x := &ioRun{plan: p, t: t}
	done := make(chan error, 1)
	go func() { done <- x.run() }()
	select {
	case err := <-done:
		return err
	case <-time.After(ioLimit):
		return fmt.Errorf("it hangs in %q:\n%s", x.at.Load(), stacks())
	}
}

// stacks are those of the engine's goroutines, without what earlier faults have left parked.
func stacks() string {
	all := make([]byte, 64<<20)
	var list []string
	for stack := range strings.SplitSeq(string(all[:runtime.Stack(all, true)]), "\n\n") {
		if strings.Contains(stack, "pkg/engine.(*ioRun)") || strings.Contains(stack, "pkg/engine.(*Pool)") && !strings.Contains(stack, "metafs.park") {
			list = append(list, stack)
		}
	}
	return strings.Join(list, "\n\n")
}

package engine

import (
	"math/rand/v2"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// hiddenPages makes a head over a joined snapshot whose pass has not begun: pages in which the head hides every other block of it. The pool's own passes are
// kept from running.
func hiddenPages(t *testing.T, pages int64) (p *testPool, v *Volume, id uint64) {
	t.Helper()
	p, _, _ = memoryPool(t)
	v = p.volume("v", pages*pageBytes)
	fill(t, v, 1)
	must(t, p.flush())
	_, err := p.CreateSnapshot(t.Context(), SnapshotSpec{Name: "s", Volume: "v"})
	must(t, err)
	b := make([]byte, BlockSize)
	for off := int64(0); off < v.Size(); off += 2 * BlockSize {
		_, err := v.WriteAt(b, off)
		must(t, err)
	}
	must(t, p.flush())
	p.jobsHeld.Store(true)
	must(t, p.DeleteSnapshot(t.Context(), "s"))
	for id = range p.catalogue.jobs {
	}
	return p, v, id
}

// What was planned for a page is not done when the page has changed since: the run to be removed may have gone with a discard, and its block be another's.
func TestPlanMeetsChanges(t *testing.T) {
	p, v, id := hiddenPages(t, 4)
	job, line := p.jobNow(id)
	p.store.watchPages()
	plans, err := planPass(p.store.db, job.Kind, line, []uint32{0, 1, 2, 3})
	must(t, err)
	if len(plans) == 0 {
		t.Fatal("nothing to do")
	}
	must(t, v.Discard(0, pageBytes/2))
	must(t, p.flush())
	p.ops.Lock()
	c := passCommit{p: p.Pool, job: job, line: line, plans: plans}
	err = p.commitThen(c.compose, step{do: func() { p.release(c.freed) }})
	p.store.unwatchPages()
	p.ops.Unlock()
	must(t, err)
	p.jobsHeld.Store(false)
	p.kickJobs()
	p.jobsDone()
	p.check()
	if used, want := p.Info().Used, v.Size()-pageBytes/2; used != want {
		t.Fatalf("%d bytes in use, want %d", used, want)
	}
}

// A plan removes what a rewrite of the page would, or leaves the page to one.
func TestPlanIsARewrite(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 3))
	for range 20 {
		p, v, id := hiddenPages(t, 2)
		for range r.IntN(40) {
			off, n := r.Int64N(v.Size()/BlockSize), 1+r.Int64N(20)
			n = min(n, v.Size()/BlockSize-off)
			if r.IntN(3) == 0 {
				must(t, v.Discard(off*BlockSize, n*BlockSize))
			} else {
				_, err := v.WriteAt(make([]byte, n*BlockSize), off*BlockSize)
				must(t, err)
			}
		}
		must(t, p.flush())
		job, line := p.jobNow(id)
		for page := range uint32(2) {
			plans, err := planPass(p.store.db, job.Kind, line, []uint32{page})
			must(t, err)
			if plans[0].slow {
				continue
			}
			lp, err := readLayerPage(p.store.db, line, page)
			must(t, err)
			want := lp.apply(lp.visible(), nil)
			left := runs.Covered(lp.own) - runs.Covered(plans[0].removed)
			if job.Kind != format.JobJoin || left != runs.Covered(want) {
				t.Fatalf("page %d: the plan leaves %d blocks, a rewrite %d", page, left, runs.Covered(want))
			}
		}
		p.jobsHeld.Store(false)
		p.kickJobs()
		p.jobsDone()
	}
}

package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// readWriter is what answers a device's requests.
type readWriter interface {
	io.ReaderAt
	io.WriterAt
}

// disk is a volume of the world with what is written on it.
type disk struct {
	w  *world
	p  *v1alpha1.Pool
	v  *v1alpha1.LocalVolume
	id volume.VolumeID
}

// newDisk makes a volume that holds 1s, with a snapshot of that, and 2s since.
func (w *world) newDisk(p *v1alpha1.Pool, name string) (d *disk, s *v1alpha1.LocalSnapshot) {
	w.t.Helper()
	v := newVolume(p, name, 2*mi)
	id, err := volume.ParseVolumeID(v.Name)
	must(w.t, err)
	d = &disk{w, p, v, id}
	w.apply(v)
	w.settled()
	d.write(1)
	s = d.snapshot(name)
	d.write(2)
	return d, s
}

func (d *disk) snapshot(name string) *v1alpha1.LocalSnapshot {
	d.w.t.Helper()
	s := newSnapshot(d.p, name, d.v.Spec.CSIName)
	s.Spec.NotAfter = metav1.NewMicroTime(d.w.clock.Now().Add(minute))
	d.w.apply(s)
	d.w.settled()
	d.w.condition(s, v1alpha1.Created, metav1.ConditionTrue, "")
	return s
}

// use attaches the volume, has f look at the device, and detaches it.
func (d *disk) use(f func(dev readWriter)) {
	d.w.t.Helper()
	_, err := d.w.agent.Node().Attach(d.w.t.Context(), d.id, false)
	must(d.w.t, err)
	dev, _ := d.w.attacher.Served(host.ID(d.p.Name, d.v.Name))
	f(dev)
	must(d.w.t, d.w.agent.Node().Detach(d.w.t.Context(), d.id))
}

func (d *disk) write(b byte) {
	d.w.t.Helper()
	d.use(func(dev readWriter) {
		_, err := dev.WriteAt(bytes.Repeat([]byte{b}, 2*mi), 0)
		must(d.w.t, err)
	})
}

// holds fails the test unless the volume holds nothing but b.
func (d *disk) holds(b byte) {
	d.w.t.Helper()
	d.use(func(dev readWriter) {
		got := make([]byte, 2*mi)
		_, err := dev.ReadAt(got, 0)
		must(d.w.t, err)
		if !bytes.Equal(got, bytes.Repeat([]byte{b}, 2*mi)) {
			d.w.t.Fatalf("the volume holds %d…, want %d", got[0], b)
		}
	})
}

// ask writes spec.rollback as the controller does; nil takes it out.
func (d *disk) ask(r *v1alpha1.Rollback) {
	d.w.t.Helper()
	get(d.w, d.v).Spec.Rollback = r
	d.w.apply(d.v)
}

func rollbackTo(token string, s *v1alpha1.LocalSnapshot) *v1alpha1.Rollback {
	return &v1alpha1.Rollback{Token: token, Namespace: "ns", Name: "back", Snapshot: s.Name}
}

// goOn tells the agent to go on with the hold that its status names.
func (d *disk) goOn() {
	d.w.t.Helper()
	s := get(d.w, d.v).Status.Rollback
	if s == nil || s.HeldSince == nil {
		d.w.t.Fatalf("it is not held: %+v", s)
	}
	r := *d.v.Spec.Rollback
	r.HeldSince = s.HeldSince
	d.ask(&r)
}

func TestRollback(t *testing.T) {
	w, p := poolWorld(t)
	d, s := w.newDisk(p, "v")
	node := w.agent.Node()

	// Attached: it waits, and goes on as soon as it is not.
	_, err := node.Attach(t.Context(), d.id, false)
	must(t, err)
	d.ask(rollbackTo("one", s))
	w.settled()
	w.condition(d.v, v1alpha1.RolledBack, metav1.ConditionFalse, v1alpha1.ReasonInUse)
	if r := d.v.Status.Rollback; r == nil || r.Token != "one" || r.HeldSince != nil {
		t.Fatalf("%+v", r)
	}
	for len(w.agent.oddVolumes) > 0 {
		<-w.agent.oddVolumes
	}
	must(t, node.Detach(t.Context(), d.id))
	if len(w.agent.oddVolumes) == 0 {
		t.Error("nobody looks at it when it is detached")
	}
	w.settled()
	w.condition(d.v, v1alpha1.RolledBack, metav1.ConditionFalse, v1alpha1.ReasonHeld)

	// Held: it cannot be staged, with whichever cache and agent, and can be snapshotted.
	w.startAgent()
	for len(w.agent.oddVolumes) > 0 {
		<-w.agent.oddVolumes
	}
	if _, err := w.agent.Node().Attach(t.Context(), d.id, false); !errors.Is(err, volume.ErrPending) || !strings.Contains(err.Error(), "held by one") {
		t.Errorf("stage what is held: %v", err)
	}
	safety := d.snapshot("safety")
	before := w.snapshotOfAll()
	w.startAgent()
	w.settled()
	if now := w.snapshotOfAll(); now["*v1alpha1.LocalVolume/"+d.v.Name] != before["*v1alpha1.LocalVolume/"+d.v.Name] {
		t.Error("status was written though nothing changed")
	}
	d.goOn()
	w.settled()
	w.condition(d.v, v1alpha1.RolledBack, metav1.ConditionTrue, v1alpha1.ReasonDone)
	if r := d.v.Status.Rollback; r.DoneAt == nil || r.HeldSince != nil || !w.events.has("RolledBack") {
		t.Errorf("%+v", r)
	}
	d.holds(1)
	d.write(3) // before the word is taken back
	w.startAgent()
	w.settled()
	d.holds(3)
	d.ask(nil)
	w.settled()
	d.holds(3)

	// Undone, without anybody's word in between.
	d.ask(rollbackTo("two", safety))
	w.settled()
	d.goOn()
	w.settled()
	d.ask(nil)
	w.settled()
	d.holds(2)
}

// A rollback that is given up lets the volume go; what never was held, too.
func TestRollbackGivenUp(t *testing.T) {
	w, p := poolWorld(t)
	d, s := w.newDisk(p, "v")
	d.ask(rollbackTo("one", s))
	w.settled()
	d.ask(nil)
	w.settled()
	if r := get(w, d.v).Status.Rollback; r.HeldSince != nil || r.DoneAt != nil {
		t.Errorf("%+v", r)
	}
	d.holds(2)

	// Another takes the place of one that nobody gave up.
	d.ask(rollbackTo("two", s))
	w.settled()
	d.ask(rollbackTo("three", s))
	w.settled()
	if r := get(w, d.v).Status.Rollback; r.Token != "three" || r.HeldSince == nil {
		t.Errorf("%+v", r)
	}

	// The object is deleted by force, and goes on being used as an orphan.
	d.v.Finalizers = nil
	must(t, w.client.Update(t.Context(), d.v))
	must(t, w.client.Delete(t.Context(), d.v))
	d.holds(2)
}

// The snapshot is gone; and a hold that was lost in between is not gone on with: the safety snapshot would be of before.
func TestRollbackRefused(t *testing.T) {
	w, p := poolWorld(t)
	d, s := w.newDisk(p, "v")
	d.ask(rollbackTo("one", s))
	w.settled()
	_, err := w.rpc.ReleaseVolume(t.Context(), p.Name, d.v.Name, "one")
	must(t, err)
	d.write(3)
	d.goOn()
	w.settled()
	c := w.condition(d.v, v1alpha1.RolledBack, metav1.ConditionFalse, v1alpha1.ReasonInvalid)
	if !strings.Contains(c.Message, "held again since") {
		t.Error(c.Message)
	}
	d.ask(nil)
	w.settled()
	d.holds(3)

	d.ask(rollbackTo("two", s))
	w.settled()
	must(t, w.rpc.DeleteSnapshot(t.Context(), p.Name, s.Name))
	d.goOn()
	w.settled()
	w.condition(d.v, v1alpha1.RolledBack, metav1.ConditionFalse, v1alpha1.ReasonSourceNotFound)
	d.ask(nil)
	w.settled()
	d.holds(3)

	other, s := w.newDisk(p, "other")
	d.ask(rollbackTo("three", s))
	w.settled()
	d.goOn()
	w.settled()
	w.condition(d.v, v1alpha1.RolledBack, metav1.ConditionFalse, v1alpha1.ReasonInvalid)
	d.ask(nil)
	w.settled()
	d.holds(3)
	other.holds(2)
}

// A cache from before the rollback, or from while it was asked for, does nothing to the volume.
func TestRollbackStaleCache(t *testing.T) {
	w, p := poolWorld(t)
	d, s := w.newDisk(p, "v")
	before := get(w, d.v).DeepCopy()
	d.ask(rollbackTo("one", s))
	asked := get(w, d.v).DeepCopy()
	w.settled()
	look := func(old *v1alpha1.LocalVolume) {
		t.Helper()
		w.agent.client = staleClient{w.client, map[string]client.Object{old.Name: old}}
		must(t, runOne{w, old.Name, false}.run())
		w.agent.client = w.client
	}
	look(before) // it must not be let go
	if info, err := w.rpc.Volume(t.Context(), p.Name, d.v.Name); err != nil || info.Hold().By != "one" {
		t.Errorf("%+v, %v", info.Hold(), err)
	}
	d.goOn()
	w.settled()
	told := get(w, d.v).DeepCopy()
	told.Status.Rollback = asked.Status.Rollback
	d.ask(nil)
	w.settled()
	_, err := w.rpc.SetVolumeLabels(t.Context(), p.Name, d.v.Name, map[string]string{"engine.rollback.by": ""}) // by another rollback since
	must(t, err)
	d.write(3)
	look(asked)
	look(told)
	d.holds(3)
}

// TestRollbackKills ends the agent at every call of a rollback, before and after the call did its work: it is done once, and what is written after it stays.
func TestRollbackKills(t *testing.T) {
	w, p := poolWorld(t)
	atEveryCall(t, 7, func(n int, after bool) string { return w.rollbackKilledAt(p, n, after) })
}

func (w *world) rollbackKilledAt(p *v1alpha1.Pool, n int, after bool) (hits string) {
	w.t.Helper()
	d, s := w.newDisk(p, fmt.Sprintf("v-%d-%t", n, after))
	step := func(what string, do func()) {
		w.t.Helper()
		hits += w.ended(n, after, what, do, runOne{w, d.v.Name, false}.run)
	}
	step("hold", func() { d.ask(rollbackTo(d.v.Name, s)) })
	safety := d.snapshot(d.v.Spec.CSIName + "-safety")
	step("roll back", d.goOn)
	w.condition(d.v, v1alpha1.RolledBack, metav1.ConditionTrue, "")
	d.holds(1)
	d.write(3)
	step("let go", func() { d.ask(nil) })
	d.holds(3)
	step("hold again", func() { d.ask(rollbackTo(d.v.Name+"2", safety)) })
	step("give up", func() { d.ask(nil) })
	d.holds(3)
	for _, o := range []client.Object{s, safety, d.v} {
		get(w, o)
		absent(o)
		w.apply(o)
		w.settled()
		get(w, o)
		w.released(o)
	}
	return hits
}

// A hundred GiB, thin, with blocks mapped all over it: from the word to go on until it can be staged again.
func TestRollbackIsOneCommit(t *testing.T) {
	w, p := poolWorld(t)
	v := newVolume(p, "big", 100<<30)
	id, err := volume.ParseVolumeID(v.Name)
	must(t, err)
	d := &disk{w, p, v, id}
	w.apply(v)
	w.settled()
	const blocks = 4000
	scatter := func(b byte) {
		d.use(func(dev readWriter) {
			for i := range int64(blocks) {
				_, err := dev.WriteAt(bytes.Repeat([]byte{b}, engine.BlockSize), i*(100<<30/blocks)&^(engine.BlockSize-1))
				must(t, err)
			}
		})
	}
	scatter(1)
	s := d.snapshot("big")
	scatter(2)
	begin := time.Now()
	d.ask(rollbackTo("one", s))
	w.settled()
	d.goOn()
	w.settled()
	_, err = w.agent.Node().Attach(t.Context(), d.id, false)
	must(t, err)
	t.Logf("100 GiB with %d scattered blocks: held, rolled back and attached in %s", blocks, time.Since(begin))
	must(t, w.agent.Node().Detach(t.Context(), d.id))
}

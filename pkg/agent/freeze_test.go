package agent

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// still plays package freeze: it keeps what was frozen, and fails as told.
type still struct {
	frozen, thawed int
	freezeErr      error
	thawErr        error
	meanwhile      func() // while it is frozen
}

func (s *still) freeze(_ context.Context, devices []string) (time.Time, func() error, error) {
	if s.freezeErr != nil {
		return time.Time{}, nil, s.freezeErr
	}
	s.frozen += len(devices)
	if s.meanwhile != nil {
		s.meanwhile()
	}
	return time.Now().Add(minute), func() error { s.thawed++; return s.thawErr }, nil
}

// freezing is a snapshot of a volume that is frozen for it.
func freezing(w *world, p *v1alpha1.Pool, name, of string) *v1alpha1.LocalSnapshot {
	s := newSnapshot(p, name, of)
	s.Spec.Consistency = string(volume.ConsistencyFreeze)
	s.Spec.NotAfter = metav1.NewMicroTime(w.clock.Now().Add(minute))
	return s
}

func TestFrozenCut(t *testing.T) {
	w, p := poolWorld(t)
	f := &still{}
	w.agent.cfg.Freeze = f.freeze
	v := newVolume(p, "v", 10*mi)
	w.apply(v)
	w.settled()
	id, _ := volume.ParseVolumeID(v.Name)

	// Nobody has it: there is nothing to freeze.
	s := freezing(w, p, "unmounted", "v")
	w.apply(s)
	w.settled()
	if w.condition(s, v1alpha1.Created, metav1.ConditionTrue, ""); s.Status.Cut.Frozen != v1alpha1.FrozenNotMounted || f.frozen != 0 {
		t.Errorf("%+v, frozen %d times", s.Status.Cut, f.frozen)
	}
	_, err := w.agent.Node().Attach(t.Context(), id, false)
	must(t, err)
	s = freezing(w, p, "mounted", "v")
	w.apply(s)
	w.settled()
	if w.condition(s, v1alpha1.Created, metav1.ConditionTrue, ""); s.Status.Cut.Frozen != v1alpha1.FrozenFileSystem || f.frozen != 1 || f.thawed != 1 {
		t.Errorf("%+v, frozen %d times, thawed %d times", s.Status.Cut, f.frozen, f.thawed)
	}
	plain := newSnapshot(p, "plain", "v")
	plain.Spec.NotAfter = s.Spec.NotAfter
	w.apply(plain)
	w.settled()
	if w.condition(plain, v1alpha1.Created, metav1.ConditionTrue, ""); plain.Status.Cut.Frozen != "" || f.frozen != 1 {
		t.Errorf("%+v, frozen %d times", plain.Status.Cut, f.frozen)
	}

	// What cannot be frozen, or was not frozen to the end, is not cut, and tried again.
	f.freezeErr = errors.New("too much is dirty")
	s = freezing(w, p, "slow", "v")
	w.apply(s)
	if err := w.settle(); err == nil || !strings.Contains(err.Error(), "too much is dirty") {
		t.Error(err)
	}
	f.freezeErr, f.thawErr = nil, errors.New("thawed before")
	if err := w.settle(); err == nil || !strings.Contains(err.Error(), "thawed before") {
		t.Error(err)
	}
	if _, err := w.rpc.Snapshot(t.Context(), p.Name, s.Name); !errors.Is(err, engine.ErrNotFound) {
		t.Errorf("it is there: %v", err)
	}
	f.thawErr = nil
	w.settled()
	w.condition(s, v1alpha1.Created, metav1.ConditionTrue, "")

	// Killed between the cut and the thaw: nobody knows whether it was frozen to the end, so it is cut again.
	s = freezing(w, p, "killed", "v")
	f.meanwhile = func() { w.faults.arm(0, true) }
	w.apply(s)
	if err := w.settleOnce(); err != nil {
		t.Log(err)
	}
	if hit := w.faults.disarm(); hit != "engine CreateSnapshot" {
		t.Errorf("killed at %q", hit)
	}
	first, err := w.rpc.Snapshot(t.Context(), p.Name, s.Name)
	must(t, err)
	f.meanwhile = nil
	w.startAgent()
	w.agent.cfg.Freeze = f.freeze
	w.settled()
	w.condition(s, v1alpha1.Created, metav1.ConditionTrue, "")
	if second, err := w.rpc.Snapshot(t.Context(), p.Name, s.Name); err != nil || second.ID == first.ID || s.Status.Cut.Frozen != v1alpha1.FrozenFileSystem {
		t.Errorf("%+v, %v, %+v", second, err, s.Status.Cut)
	}
	must(t, w.agent.Node().Detach(t.Context(), id))
}

// All file systems of a group are frozen for its one cut; what nobody has needs none. One that was cut when the agent died is cut again, for nobody knows
// whether they were frozen to the end.
func TestFrozenGroupCut(t *testing.T) {
	w, p := poolWorld(t)
	f := &still{}
	w.agent.cfg.Freeze = f.freeze
	for _, name := range []string{"v0", "v1", "v2"} {
		w.apply(newVolume(p, name, 10*mi))
	}
	w.settled()
	for _, name := range []string{"v0", "v2"} {
		id, _ := volume.ParseVolumeID(newVolume(p, name, 0).Name)
		_, err := w.agent.Node().Attach(t.Context(), id, false)
		must(t, err)
		defer func() { must(t, w.agent.Node().Detach(context.WithoutCancel(t.Context()), id)) }()
	}
	all := func() []engine.SnapshotInfo {
		list, err := w.rpc.Snapshots(t.Context(), p.Name, "")
		must(t, err)
		return list
	}
	g, members := w.newGroup(p, "g", "v0", "v1", "v2")
	g.Spec.Consistency = string(volume.ConsistencyFreeze)
	f.thawErr = errors.New("thawed before")
	w.apply(g)
	if err := w.settle(); err == nil || !strings.Contains(err.Error(), "thawed before") || len(all()) != 0 {
		t.Errorf("not frozen to the end: %v, %d snapshots", err, len(all()))
	}
	f.thawErr, f.frozen, f.thawed = nil, 0, 0
	f.meanwhile = func() { w.faults.arm(0, true) }
	_, err := groups{w.agent}.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKeyFromObject(g)})
	if hit := w.faults.disarm(); hit != "engine CreateSnapshotGroup" {
		t.Errorf("killed at %q, %v", hit, err)
	}
	first := all()
	if len(first) != 3 {
		t.Fatalf("%d snapshots", len(first))
	}
	f.meanwhile = nil
	w.startAgent()
	w.agent.cfg.Freeze = f.freeze
	f.frozen = 0
	w.settled()
	w.condition(g, v1alpha1.Created, metav1.ConditionTrue, "")
	if second := all(); len(second) != 3 || second[0].ID == first[0].ID || f.frozen != 2 ||
		!slices.Equal(g.Status.Frozen, []string{members[0].Spec.Volume, members[2].Spec.Volume}) {
		t.Errorf("%d snapshots, %d frozen, %v", len(second), f.frozen, g.Status.Frozen)
	}
	for _, s := range members {
		w.apply(s)
	}
	w.settled()
	w.condition(members[1], v1alpha1.Created, metav1.ConditionTrue, "")
}

// What is left of a cut that was being taken back is no cut.
func TestRestOfGroup(t *testing.T) {
	w, p := poolWorld(t)
	w.apply(newVolume(p, "v0", 10*mi))
	w.apply(newVolume(p, "v1", 10*mi))
	w.settled()
	g, members := w.newGroup(p, "g", "v0", "v1")
	w.apply(g)
	w.settled()
	must(t, w.rpc.DeleteSnapshot(t.Context(), p.Name, members[0].Name))
	get(w, g).Status = v1alpha1.LocalSnapshotGroupStatus{}
	must(t, w.client.Status().Update(t.Context(), g))
	w.settled()
	w.condition(g, v1alpha1.Created, metav1.ConditionTrue, "")
	if all, err := w.rpc.Snapshots(t.Context(), p.Name, ""); err != nil || len(all) != 2 || !all[0].CreatedAt.Equal(all[1].CreatedAt) {
		t.Errorf("%+v, %v", all, err)
	}
}

// A volume without a file system that the node knows of is refused, and so is every freeze where nothing can freeze.
func TestFreezeRefused(t *testing.T) {
	w, p := poolWorld(t)
	w.agent.cfg.Freeze = (&still{}).freeze
	block := newVolume(p, "block", 10*mi)
	block.Spec.FSType = ""
	files := newVolume(p, "files", 10*mi)
	w.apply(block)
	w.apply(files)
	w.settled()
	s := freezing(w, p, "of a block volume", "block")
	w.apply(s)
	w.settled()
	if c := w.condition(s, v1alpha1.Created, metav1.ConditionFalse, v1alpha1.ReasonInvalid); !strings.Contains(c.Message, "KubeVirt") {
		t.Error(c.Message)
	}
	g, _ := w.newGroup(p, "with a block volume", "files", "block")
	g.Spec.Consistency = string(volume.ConsistencyFreeze)
	w.apply(g)
	w.settled()
	if c := w.condition(g, v1alpha1.Created, metav1.ConditionFalse, v1alpha1.ReasonInvalid); !strings.Contains(c.Message, block.Name) {
		t.Error(c.Message)
	}
	w.agent.cfg.Freeze = nil
	s = freezing(w, p, "of files", "files")
	w.apply(s)
	w.settled()
	w.condition(s, v1alpha1.Created, metav1.ConditionFalse, v1alpha1.ReasonInvalid)
}

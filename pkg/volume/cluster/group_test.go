package cluster_test

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"testing"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/volumetest"
)

// groupOf asks for a group of new volumes.
func (f *fixture) groupOf(name string, volumes ...string) volume.GroupRequest {
	f.t.Helper()
	r := volume.GroupRequest{Name: name}
	for _, v := range volumes {
		r.Sources = append(r.Sources, f.must(v).ID)
	}
	return r
}

func (f *fixture) groupObject(id volume.GroupID) *v1alpha1.LocalSnapshotGroup {
	f.t.Helper()
	var g v1alpha1.LocalSnapshotGroup
	if err := f.api.Get(f.t.Context(), client.ObjectKey{Name: id.String()}, &g); err != nil {
		f.t.Fatal(err)
	}
	return &g
}

// TestGroupApart: volumes on two nodes are not cut, and the error says which are where.
func TestGroupApart(t *testing.T) {
	f := newFixture(t, nil)
	f.addPool("pool-b", "worker-b", "node-b", volumetest.PoolSize)
	newAgent(t, f.api, f.cache, "worker-b", "node-b", "pool-b")
	r := volume.GroupRequest{Name: "apart"}
	for name, node := range map[string]volume.NodeID{"a1": volumetest.Node, "b1": "node-b"} {
		v, err := f.Create(t.Context(), volume.CreateRequest{
			Name: name, Placement: volume.Placement{Constrained: true, Requisite: []volume.NodeID{node}},
		})
		if err != nil {
			t.Fatal(err)
		}
		r.Sources = append(r.Sources, v.ID)
	}
	_, err := volume.OpenController(f.Service).CreateGroup(t.Context(), r)
	says(t, "cut", err, volume.ErrApart, "a1", "b1", "worker-a", "worker-b", "pool-b", volumetest.Pool)
	if left := f.api.names(t); len(left) != 2 {
		t.Errorf("left %v", left)
	}
}

// TestGroupFrozen: the node is told to freeze; a volume without a file system is refused by its name before anything is written.
func TestGroupFrozen(t *testing.T) {
	f := newFixture(t, nil)
	r := volume.GroupRequest{Name: "g", Consistency: volume.ConsistencyFreeze}
	for name, fsType := range map[string]string{"files": "ext4", "block": ""} {
		v, err := f.Create(t.Context(), volume.CreateRequest{Name: name, FSType: fsType})
		if err != nil {
			t.Fatal(err)
		}
		r.Sources = append(r.Sources, v.ID)
	}
	_, err := f.CreateGroup(t.Context(), r)
	says(t, "cut with a block volume", err, volume.ErrInvalid, "volume block", "KubeVirt")
	if left := f.api.names(t); len(left) != 2 {
		t.Errorf("left %v", left)
	}
	r.Sources = []volume.VolumeID{volume.VolumeIDOf("files")}
	if _, err := f.CreateGroup(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if got := f.groupObject(r.ID()).Spec.Consistency; got != "FilesystemFreeze" {
		t.Errorf("the node is asked for consistency %q", got)
	}
}

// TestGroupCommandsExpire: as of a snapshot, what nobody waits for any more is not cut, and a retry moves the time on.
func TestGroupCommandsExpire(t *testing.T) {
	f := newFixture(t, nil)
	c := volume.OpenController(f.Service)
	r := f.groupOf("g", "a", "b")
	f.agent.set(func(a *agent) { a.silent = true })
	_, err := c.CreateGroup(short(t), r)
	says(t, "cut", err, context.DeadlineExceeded, "worker-a", r.ID().String())
	first := f.groupObject(r.ID())
	eventually(t, "past", func() bool { return time.Now().After(first.Spec.NotAfter.Time) })
	f.agent.set(func(a *agent) { a.silent = false })
	eventually(t, "expired", func() bool { return len(f.groupObject(r.ID()).Status.Conditions) > 0 })
	if f.agent.did("cut group") != 0 {
		t.Error("cut after the caller stopped waiting")
	}
	other := volume.GroupRequest{Name: "g", Sources: r.Sources[:1]}
	if _, err := c.CreateGroup(t.Context(), other); !errors.Is(err, volume.ErrExists) {
		t.Errorf("the same name for other volumes: %v", err)
	}
	g, err := c.CreateGroup(t.Context(), r)
	if err != nil || g.CreatedAt.Before(first.Spec.NotAfter.Time) || f.agent.did("cut group") != 1 {
		t.Fatalf("retry: %+v, %v, %d cuts", g, err, f.agent.did("cut group"))
	}
	f.agent.set(func(a *agent) { a.fail["cut group"] = fmt.Errorf("pool: %w", volume.ErrNoSpace) })
	r.Name = "full"
	_, err = c.CreateGroup(t.Context(), r)
	says(t, "final", err, volume.ErrNoSpace, "pool:")
	if left := f.api.names(t); slices.Contains(left, r.ID().String()) {
		t.Errorf("left %v", left)
	}
}

// TestGroupWithoutMembers: the process died right after the cut. The group is not there until the repeated call has made its snapshots' objects.
func TestGroupWithoutMembers(t *testing.T) {
	f := newFixture(t, nil)
	c := volume.OpenController(f.Service)
	r := f.groupOf("g", "a", "b")
	f.api.set(func(verb string, obj client.Object) error {
		if _, ok := obj.(*v1alpha1.LocalSnapshot); ok {
			return apierrors.NewServerTimeout(schema.GroupResource{Resource: "localsnapshots"}, verb, 1)
		}
		return nil
	}, nil)
	_, err := c.CreateGroup(t.Context(), r)
	says(t, "cut", err, volume.ErrUnavailable, "localsnapshots")
	if _, err := c.GetGroup(t.Context(), r.ID()); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("half of it: %v", err)
	}
	f.api.set(nil, nil)
	at := f.groupObject(r.ID()).Status.CreationTime
	g, err := c.CreateGroup(t.Context(), r)
	if err != nil || !at.Time.Equal(g.CreatedAt) || len(g.Snapshots) != 2 || f.agent.did("cut group") != 1 {
		t.Fatalf("again: %+v, %v, %d cuts, the first at %v", g, err, f.agent.did("cut group"), at)
	}
	if got, err := c.GetGroup(t.Context(), r.ID()); err != nil || !slices.Equal(got.Snapshots, g.Snapshots) {
		t.Errorf("looked at: %+v, %v", got, err)
	}
}

// TestMemberWithoutGroup: somebody removed the group's object by force; its snapshots' can still be.
func TestMemberWithoutGroup(t *testing.T) {
	f := newFixture(t, nil)
	c := volume.OpenController(f.Service)
	g, err := c.CreateGroup(t.Context(), f.groupOf("g", "a"))
	if err != nil {
		t.Fatal(err)
	}
	id := g.Snapshots[0].ID
	says(t, "with its group", c.DeleteSnapshot(t.Context(), id), volume.ErrGrouped, g.ID.String())
	o := f.groupObject(g.ID)
	if err := f.api.Patch(t.Context(), o, client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))); err != nil {
		t.Fatal(err)
	}
	if err := f.api.Delete(t.Context(), o); err != nil {
		t.Fatal(err)
	}
	if err := c.DeleteSnapshot(t.Context(), id); err != nil {
		t.Errorf("without: %v", err)
	}
	if left := f.api.names(t); len(left) != 1 {
		t.Errorf("left %v", left)
	}
}

// TestGroupTombstone: the node is lost. The deletion is answered, and carried out when the node returns.
func TestGroupTombstone(t *testing.T) {
	f := newFixture(t, nil)
	c := volume.OpenController(f.Service)
	r := f.groupOf("g", "a", "b")
	g, err := c.CreateGroup(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	f.agent.set(func(a *agent) { a.silent = true })
	o := f.groupObject(g.ID)
	f.status(o, func() { state(&o.Status.Conditions, v1alpha1.NodeLost, 1, nil) })
	for _, id := range g.Handles() {
		s := f.snapshotObject(id)
		f.status(s, func() { state(&s.Status.Conditions, v1alpha1.NodeLost, 1, nil) })
	}
	for range 2 {
		if err := c.DeleteGroup(awhile(t), g.ID, g.Handles()); err != nil {
			t.Fatal(err)
		}
	}
	if o := f.groupObject(g.ID); o.Spec.DesiredState != v1alpha1.Absent || o.DeletionTimestamp.IsZero() {
		t.Errorf("no tombstone: %+v", o)
	}
	if _, err := c.GetGroup(t.Context(), g.ID); !errors.Is(err, volume.ErrNotFound) {
		t.Errorf("looked at: %v", err)
	}
	if _, err := c.CreateGroup(t.Context(), r); !errors.Is(err, volume.ErrPending) {
		t.Errorf("the name again: %v", err)
	}
	f.agent.set(func(a *agent) { a.silent = false })
	eventually(t, "deleted by its node", func() bool {
		return meta.IsStatusConditionTrue(f.groupObject(g.ID).Status.Conditions, v1alpha1.Deleted) &&
			!slices.ContainsFunc(g.Handles(), func(id volume.SnapshotID) bool {
				return !meta.IsStatusConditionTrue(f.snapshotObject(id).Status.Conditions, v1alpha1.Deleted)
			})
	})
	if err := c.DeleteGroup(awhile(t), g.ID, g.Handles()); err != nil {
		t.Fatal(err)
	}
	if left := f.api.names(t); len(left) != 2 {
		t.Errorf("left %v", left)
	}
}

// TestEveryWriteOfGroupsFailsOnce: whatever write fails, before or after it was done, repeating the call comes to the same end, with one cut.
func TestEveryWriteOfGroupsFailsOnce(t *testing.T) {
	everyWriteFails(t, func(f *failing) {
		c := volume.OpenController(f.Service)
		r := f.groupOf("g", "a", "b")
		f.arm()
		var g volume.Group
		f.again("cut", func() (err error) { g, err = c.CreateGroup(t.Context(), r); return err })
		if len(g.Snapshots) != 2 {
			t.Fatalf("%s: %+v", f.how, g)
		}
		f.again("delete", func() error { return c.DeleteGroup(t.Context(), g.ID, g.Handles()) })
		if left := f.api.names(t); len(left) != 2 {
			t.Errorf("%s: left %v", f.how, left)
		}
		if f.agent.did("cut group") != 1 || f.agent.did("delete group") != 1 {
			t.Errorf("%s: the node did %v", f.how, f.agent.done)
		}
	})
}

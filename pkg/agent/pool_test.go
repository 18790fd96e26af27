package agent

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
)

// newPool is a Pool of one directory.
func newPool(name, dir string) *v1alpha1.Pool {
	size := resource.MustParse("256Mi")
	p := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: name, Finalizers: []string{v1alpha1.Finalizer}}}
	p.Spec.NodeName, p.Spec.PoolSet, p.Spec.DesiredState, p.Spec.Allocation = nodeName, "default", v1alpha1.Present, v1alpha1.Striped
	p.Spec.Members = []v1alpha1.Member{{Directory: &v1alpha1.DirectoryMember{Path: dir, Size: &size}}}
	return p
}

// poolWorld is a world with a pool that serves.
func poolWorld(t *testing.T) (*world, *v1alpha1.Pool) {
	t.Helper()
	w := newWorld(t)
	p := newPool("default-node-1", filepath.Join(w.dir, "pool"))
	w.apply(p)
	w.settled()
	w.condition(p, v1alpha1.Ready, metav1.ConditionTrue, "")
	return w, p
}

func TestPoolMade(t *testing.T) {
	w, p := poolWorld(t)
	if p.Status.UUID == "" || p.Status.Identity != nodeName || p.Status.Size.Value() != 256*mi || len(p.Status.Members) != 1 || p.Status.ObservedGeneration != 1 {
		t.Errorf("%+v", p.Status)
	}
	for _, kind := range []string{v1alpha1.SpaceScarce, v1alpha1.OrphansFound} {
		w.condition(p, kind, metav1.ConditionFalse, "")
	}
	w.condition(p, v1alpha1.MembersComplete, metav1.ConditionTrue, "")
	if !w.events.has("PoolMade") {
		t.Error("no event")
	}
	before := w.snapshotOfAll()
	w.startAgent()
	w.stopEngine()
	if err := w.settle(); err == nil {
		t.Error("an engine that is away is no error")
	}
	w.condition(p, v1alpha1.Ready, metav1.ConditionTrue, "")
	w.startEngine()
	w.settled()
	if now := w.snapshotOfAll(); now["*v1alpha1.Pool/"+p.Name] != before["*v1alpha1.Pool/"+p.Name] {
		t.Error("status was written though nothing changed")
	}
}

// A part of what is free, and members that are added later.
func TestPoolMembers(t *testing.T) {
	w := newWorld(t)
	p := newPool("p", filepath.Join(w.dir, "a"))
	p.Spec.Members[0].Directory.Size = nil
	p.Spec.Members[0].Directory.PercentOfFree, p.Spec.Members[0].Directory.MaxFilesystemPercent = 50, 100
	w.apply(p)
	w.settled()
	if size := get(w, p).Status.Size; size == nil || size.Value() < engine.MinPoolSize {
		t.Fatalf("%v", size)
	}
	size := resource.MustParse("300Mi")
	p.Spec.Members = append(p.Spec.Members, v1alpha1.Member{Directory: &v1alpha1.DirectoryMember{Path: filepath.Join(w.dir, "b") + "/", Size: &size}})
	w.apply(p)
	w.settled()
	if get(w, p); len(p.Status.Members) != 2 || p.Status.Members[1].Size.Value() != 300*mi {
		t.Errorf("%+v", p.Status.Members)
	}
	must(t, os.MkdirAll(filepath.Join(w.dir, "c", "taken"), 0o755))
	p.Spec.Members = append(p.Spec.Members, v1alpha1.Member{Directory: &v1alpha1.DirectoryMember{Path: filepath.Join(w.dir, "c"), Size: &size}})
	w.apply(p)
	w.settled()
	if c := w.condition(p, v1alpha1.MembersComplete, metav1.ConditionFalse, ""); !strings.Contains(c.Message, "it holds taken") {
		t.Errorf("%+v", c)
	}
	w.condition(p, v1alpha1.Ready, metav1.ConditionTrue, "")
}

// An agent and an engine that were killed after making the pool, before anybody wrote down that they had: the pool is found where it is.
func TestPoolAdopted(t *testing.T) {
	w, p := poolWorld(t)
	uuid := p.Status.UUID
	w.stopEngine()
	must(t, os.RemoveAll(w.state))
	p.Status = v1alpha1.PoolStatus{}
	must(t, w.client.Status().Update(t.Context(), p))
	w.startEngine()
	w.settled()
	w.condition(p, v1alpha1.Ready, metav1.ConditionTrue, "")
	if p.Status.UUID != uuid {
		t.Errorf("another pool was made: %s, want %s", p.Status.UUID, uuid)
	}
}

// diskAway takes the pool's folder away, and what the engine remembers of it, and returns where the folder was; with .away behind, that is where it is.
func (w *world) diskAway() (dir string) {
	w.t.Helper()
	w.stopEngine()
	dir = filepath.Join(w.dir, "pool")
	must(w.t, os.Rename(dir, dir+".away"))
	must(w.t, os.RemoveAll(w.state))
	w.startEngine()
	w.settled()
	return dir
}

// A node that was installed anew, or whose disk is not mounted: no pool is made in place of the one that was there, its volumes are lost; when the disk
// comes back, so are they.
func TestPoolGone(t *testing.T) {
	w, p := poolWorld(t)
	v := newVolume(p, "v", 10*mi)
	w.apply(v)
	w.settled()
	w.condition(v, v1alpha1.Created, metav1.ConditionTrue, "")
	dir := w.diskAway()
	if c := w.condition(p, v1alpha1.Ready, metav1.ConditionFalse, v1alpha1.ReasonPoolGone); !strings.Contains(c.Message, dir) {
		t.Error(c.Message)
	}
	w.condition(v, v1alpha1.Lost, metav1.ConditionTrue, v1alpha1.ReasonPoolGone)
	if _, err := os.Stat(dir); err == nil {
		t.Error("something was made where the pool was")
	}
	must(t, os.Rename(dir+".away", dir))
	w.settled()
	w.condition(p, v1alpha1.Ready, metav1.ConditionTrue, "")
	w.condition(v, v1alpha1.Lost, metav1.ConditionFalse, "")
	if !w.events.has("Warning Lost") || !w.events.has("VolumeFound") {
		t.Errorf("events: %q", w.events.all)
	}
}

// A pool whose disk is lost for good is given up with both keys, and with it what was to be deleted there; what nobody asked to delete keeps it.
func TestLostPoolGivenUp(t *testing.T) {
	w, p := poolWorld(t)
	v, kept := newVolume(p, "v", 10*mi), newVolume(p, "kept", 10*mi)
	w.apply(v)
	w.apply(kept)
	w.settled()
	dir := w.diskAway()
	absent := func(o client.Object, want *v1alpha1.DesiredState) {
		*want = v1alpha1.Absent
		w.apply(o)
		must(t, w.client.Delete(t.Context(), o))
		w.settled()
	}
	get(w, v)
	absent(v, &v.Spec.DesiredState)
	w.condition(v, v1alpha1.Deleted, metav1.ConditionFalse, "")
	get(w, p)
	absent(p, &p.Spec.DesiredState)
	w.settled()
	w.condition(v, v1alpha1.Deleted, metav1.ConditionTrue, "")
	w.condition(p, v1alpha1.Deleted, metav1.ConditionFalse, "")
	get(w, kept)
	absent(kept, &kept.Spec.DesiredState)
	w.settled()
	w.condition(p, v1alpha1.Deleted, metav1.ConditionTrue, "")
	must(t, os.Rename(dir+".away", dir))
	if _, err := w.rpc.OpenPool(t.Context(), host.OpenSpec{Member: dir}); err != nil {
		t.Fatal(err)
	}
	if vs, err := w.rpc.Volumes(t.Context(), p.Name); err != nil || len(vs) != 2 {
		t.Errorf("the disk returns with %+v, %v; want both volumes", vs, err)
	}
}

// Disks of another node: they are announced, and served once the objects are here, under the identity that the volumes are looked for.
func TestForeignPool(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(w.dir, "pool")
	info, err := w.rpc.CreatePool(t.Context(), engine.PoolSpec{Name: "default-node-9", Node: "node-9", Directory: dir, Size: 256 * mi})
	must(t, err)
	must(t, w.rpc.ClosePool(t.Context(), "default-node-9"))
	mine := newPool("default-node-1", dir)
	w.apply(mine)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
	get(w, node).Labels = map[string]string{v1alpha1.TopologyKey: nodeName}
	must(t, w.client.Update(t.Context(), node))
	if id, err := w.agent.Identity(t.Context()); err != nil || id != nodeName {
		t.Fatal(id, err)
	}
	w.settled()
	w.condition(mine, v1alpha1.Ready, metav1.ConditionFalse, v1alpha1.ReasonForeignPool)
	must(t, w.agent.Renew(t.Context()))
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "rowan-agent-node-1", Namespace: "rowan"}}
	if got := get(w, lease).Annotations[v1alpha1.ForeignPools]; got != info.ID {
		t.Fatalf("announced %q, want %s", got, info.ID)
	}
	moved := newPool("default-node-9", dir)
	moved.Status.UUID, moved.Status.Identity = info.ID, "node-9"
	w.apply(moved)
	must(t, w.client.Status().Update(t.Context(), moved))
	w.settled()
	w.condition(moved, v1alpha1.Ready, metav1.ConditionTrue, "")
	must(t, w.agent.Renew(t.Context()))
	if got := get(w, lease).Annotations[v1alpha1.ForeignPools]; got != "" {
		t.Errorf("announced still: %q", got)
	}
	if id := w.agent.Node().NodeID(); id != "node-9" {
		t.Errorf("identity %s", id)
	}
	if _, err := w.agent.KeepNode(t.Context(), true); err != nil {
		t.Error(err)
	}
	if got := get(w, node).Labels[v1alpha1.TopologyKey]; got != "node-9" {
		t.Errorf("the node's label is %s", got)
	}
	w.startAgent()
	if id := w.agent.Known(); id != "node-9" {
		t.Errorf("remembered identity %q", id)
	}
}

// A node of the name of one whose disks serve elsewhere takes another identity.
func TestIdentityTaken(t *testing.T) {
	elsewhere := newPool("default-node-1", "/pool")
	elsewhere.Spec.NodeName, elsewhere.Status.Identity = "node-2", nodeName
	w := newWorld(t)
	must(t, w.client.Create(t.Context(), elsewhere))
	must(t, w.client.Status().Update(t.Context(), elsewhere))
	must(t, w.client.Delete(t.Context(), elsewhere)) // its finalizer keeps it, as one that is being deleted
	c := &onlyMine{w.client}
	w.agent.client = c
	if id, err := w.agent.Identity(t.Context()); err != nil || id != "node-1-node-uid" {
		t.Errorf("%q, %v", id, err)
	}
	if got := labelValue(strings.Repeat("long.", 30)); len(got) > 63 || got != labelValue(strings.Repeat("long.", 30)) {
		t.Errorf("%q", got)
	}
}

// Disks of another node serve here although this one's own were thrown away, and are still looked for; a node whose disks serve elsewhere gives their
// identity up.
func TestIdentityFollowsDisks(t *testing.T) {
	w, own := poolWorld(t)
	if id, err := w.agent.Identity(t.Context()); err != nil || id != nodeName {
		t.Fatal(id, err)
	}
	w.diskAway()
	w.condition(own, v1alpha1.Ready, metav1.ConditionFalse, v1alpha1.ReasonPoolGone)
	dir := filepath.Join(w.dir, "moved")
	info, err := w.rpc.CreatePool(t.Context(), engine.PoolSpec{Name: "default-node-9", Node: "node-9", Directory: dir, Size: 256 * mi})
	must(t, err)
	moved := newPool("default-node-9", dir)
	moved.Status.UUID, moved.Status.Identity = info.ID, "node-9"
	w.apply(moved)
	must(t, w.client.Status().Update(t.Context(), moved))
	w.settled()
	w.condition(moved, v1alpha1.Ready, metav1.ConditionTrue, "")
	w.condition(moved, v1alpha1.MembersComplete, metav1.ConditionTrue, "")
	if id, err := w.agent.Identity(t.Context()); err != nil || id != "node-9" {
		t.Fatalf("with node-9's disks this node is %s, %v", id, err)
	}
	moved.Spec.NodeName = "node-2"
	w.apply(moved)
	c := &onlyMine{w.client}
	w.agent.client = c
	if id, err := w.agent.Identity(t.Context()); err != nil || id != nodeName {
		t.Fatalf("when they have gone again it is %s, %v", id, err)
	}
}

// The Node's label follows at once when its disks leave while the agent runs: pods on their volumes must not be sent here any more. The kubelet is told
// the same when it asks next.
func TestNodeFollowsDisks(t *testing.T) {
	w, p := poolWorld(t)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
	get(w, node).Labels = map[string]string{v1alpha1.TopologyKey: nodeName}
	must(t, w.client.Update(t.Context(), node))
	reader := &countingLists{Reader: w.client}
	w.agent.client, w.agent.reader = &onlyMine{w.client}, reader
	ctx, stop := context.WithCancel(t.Context())
	lived := make(chan struct{})
	go func() {
		defer close(lived)
		w.agent.Live(ctx, func() bool { return true }, func(err error) { t.Error(err) })
	}()
	defer func() { stop(); <-lived }()
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: "rowan-agent-node-1", Namespace: "rowan"}}
	within(t, "the agent says that it lives", func() bool { return w.client.Get(ctx, client.ObjectKeyFromObject(lease), lease) == nil })

	w.diskAway()
	get(w, p).Spec.NodeName = "node-2"
	w.apply(p)
	_, err := pools{w.agent}.Reconcile(ctx, reconcile.Request{NamespacedName: types.NamespacedName{Name: p.Name}})
	must(t, err)
	within(t, "the label follows, by no clock", func() bool { return get(w, node).Labels[v1alpha1.TopologyKey] == "node-1-node-uid" })
	if id := w.agent.Node().NodeID(); id != "node-1-node-uid" {
		t.Errorf("the kubelet is told %s", id)
	}
	_, err = w.agent.KeepNode(ctx, true)
	must(t, err)
	asked := reader.n.Load()
	for range 3 {
		_, err = w.agent.KeepNode(ctx, true)
		must(t, err)
	}
	if n := reader.n.Load() - asked; n > 0 {
		t.Errorf("all nodes' pools were listed %d times although no pool came or went", n)
	}

	get(w, p).Spec.NodeName = nodeName
	w.apply(p)
	info, err := w.rpc.CreatePool(ctx, engine.PoolSpec{Name: p.Name, Node: nodeName, Directory: filepath.Join(w.dir, "back"), Size: 256 * mi})
	must(t, err)
	p.Status.UUID = info.ID
	must(t, w.client.Status().Update(ctx, p))
	w.settled()
	within(t, "it is what it was with the disk back", func() bool { return get(w, node).Labels[v1alpha1.TopologyKey] == nodeName })
}

// countingLists counts lists.
type countingLists struct {
	client.Reader
	n atomic.Int32
}

func (c *countingLists) List(ctx context.Context, l client.ObjectList, opts ...client.ListOption) error {
	c.n.Add(1)
	return c.Reader.List(ctx, l, opts...)
}

// A pool is given up with both keys, and empty; its files stay.
func TestPoolAbsent(t *testing.T) {
	w, p := poolWorld(t)
	v := newVolume(p, "v", 10*mi)
	w.apply(v)
	w.settled()
	must(t, w.client.Delete(t.Context(), get(w, p)))
	w.settled()
	w.condition(p, v1alpha1.DeletionNotConfirmed, metav1.ConditionTrue, "")
	w.condition(p, v1alpha1.Ready, metav1.ConditionTrue, "")
	p.Spec.DesiredState = v1alpha1.Absent
	w.apply(p)
	w.settled()
	w.condition(p, v1alpha1.DeletionNotConfirmed, metav1.ConditionFalse, "")
	if c := w.condition(p, v1alpha1.Deleted, metav1.ConditionFalse, v1alpha1.ReasonInUse); !strings.Contains(c.Message, "1 volumes") {
		t.Error(c.Message)
	}
	get(w, v).Spec.DesiredState = v1alpha1.Absent
	w.apply(v)
	w.settled()
	w.condition(v, v1alpha1.Deleted, metav1.ConditionTrue, "")
	w.condition(p, v1alpha1.Deleted, metav1.ConditionTrue, "")
	if ps, err := w.rpc.Pools(t.Context()); err != nil || len(ps) != 0 {
		t.Errorf("%+v, %v", ps, err)
	}
}

func TestOrphans(t *testing.T) {
	w, p := poolWorld(t)
	v, s := newVolume(p, "v", 10*mi), newSnapshot(p, "s", "v")
	s.Spec.NotAfter = metav1.NewMicroTime(w.clock.Now().Add(minute))
	w.apply(v)
	w.settled()
	w.apply(s)
	w.settled()
	w.condition(p, v1alpha1.OrphansFound, metav1.ConditionFalse, "")
	for _, o := range []client.Object{v, s} { // by force: finalizer and all
		get(w, o).SetFinalizers(nil)
		must(t, w.client.Update(t.Context(), o))
		must(t, w.client.Delete(t.Context(), o))
	}
	w.settled()
	w.condition(p, v1alpha1.OrphansFound, metav1.ConditionTrue, "")
	if o := p.Status.Orphans; len(o) != 2 || o[0].Name != s.Name || o[1].UID != string(v.UID) || p.Status.OrphanSize.Value() != 10*mi {
		t.Errorf("%+v", p.Status)
	}
	again := newVolume(p, "v", 10*mi)
	again.UID = "another-uid"
	w.apply(again)
	w.settled()
	w.condition(again, v1alpha1.Created, metav1.ConditionFalse, v1alpha1.ReasonExists)
	if o := get(w, p).Status.Orphans; len(o) != 2 {
		t.Errorf("%+v", o)
	}
	get(w, again).Spec.DesiredState = v1alpha1.Absent
	w.apply(again)
	w.settled()
	w.condition(again, v1alpha1.Deleted, metav1.ConditionTrue, "")
	if _, err := w.rpc.Volume(t.Context(), p.Name, v.Name); err != nil {
		t.Errorf("the orphan was deleted: %v", err)
	}
}

func TestKeepNode(t *testing.T) {
	w := newWorld(t)
	node := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: nodeName}}
	other := corev1.Taint{Key: "other", Effect: corev1.TaintEffectNoSchedule}
	get(w, node).Spec.Taints = []corev1.Taint{other, {Key: v1alpha1.TaintNotReady, Effect: corev1.TaintEffectNoSchedule}}
	must(t, w.client.Update(t.Context(), node))
	if done, err := w.agent.KeepNode(t.Context(), true); done || err != nil || len(get(w, node).Spec.Taints) != 2 {
		t.Errorf("without a pool: %t, %v, %v", done, err, node.Spec.Taints)
	}
	w.apply(newPool("p", filepath.Join(w.dir, "pool")))
	w.settled()
	if done, err := w.agent.KeepNode(t.Context(), false); done || err != nil || len(get(w, node).Spec.Taints) != 2 {
		t.Errorf("unregistered: %t, %v, %v", done, err, node.Spec.Taints)
	}
	if done, err := w.agent.KeepNode(t.Context(), true); !done || err != nil || len(get(w, node).Spec.Taints) != 1 || node.Spec.Taints[0] != other {
		t.Errorf("with one: %t, %v, %v", done, err, node.Spec.Taints)
	}
}

func TestGrowthStoppedIsTold(t *testing.T) {
	w, p := poolWorld(t)
	w.condition(p, v1alpha1.GrowthStopped, metav1.ConditionFalse, "")
	s := v1alpha1.Status{}
	reportGrowth(conditions{status: &s, clock: w.clock}, engine.PoolInfo{Members: []engine.MemberInfo{
		{Path: "/a"}, {Path: "/b", GrowthStopped: true, Reason: "over 80 %"},
	}})
	if c := s.Conditions[0]; c.Status != metav1.ConditionTrue || c.Message != "member /b: over 80 %" {
		t.Errorf("%+v", c)
	}
}

// An object that vanishes while its status is written is no error: nobody is left to be told.
func TestWriteToNobody(t *testing.T) {
	w, p := poolWorld(t)
	v := newVolume(p, "v", 10*mi)
	v.Finalizers = nil
	w.apply(v)
	old := get(w, v).DeepCopy()
	must(t, w.client.Delete(t.Context(), v))
	must(t, write(t.Context(), w.agent, old, func(_ *v1alpha1.LocalVolume, c conditions) { c.yes(v1alpha1.Deleted, v1alpha1.ReasonDone, "") }))
}

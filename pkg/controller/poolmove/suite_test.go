package poolmove

import (
	"slices"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
	"github.com/rowan-csi/rowan/pkg/controller/kit/kittest"
)

type suite struct {
	*kittest.World
	c *Controller
	t *testing.T
}

// start with pools A and B on nodes a and b, one of each kind in each, a node c, and all agents alive.
func start(t *testing.T) *suite {
	t.Helper()
	objects := kittest.Node("c", "uid-c", nil)
	for _, node := range []string{"a", "b"} {
		at := v1alpha1.Location{NodeName: node, Pool: "pool-" + node, PoolUUID: strings.ToUpper(node)}
		meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Name: name + "-" + node} }
		objects = append(objects, append(kittest.Node(node, "uid-"+node, nil),
			&v1alpha1.Pool{ObjectMeta: meta("pool"), Spec: v1alpha1.PoolSpec{NodeName: node, NodeUID: "uid-" + node},
				Status: v1alpha1.PoolStatus{UUID: at.PoolUUID, Identity: node}},
			&v1alpha1.LocalVolume{ObjectMeta: meta("vol"), Spec: v1alpha1.LocalVolumeSpec{Location: at}},
			&v1alpha1.LocalSnapshot{ObjectMeta: meta("snap"), Spec: v1alpha1.LocalSnapshotSpec{Location: at}},
			&v1alpha1.LocalSnapshotGroup{ObjectMeta: meta("group"), Spec: v1alpha1.LocalSnapshotGroupSpec{Location: at}})...)
	}
	w := kittest.New(t, nil, objects...)
	s := &suite{w, New(w.Kit, kit.NewAgents(w.Kit)), t}
	s.renew("a", "b", "c")
	s.ready("pool-a", metav1.ConditionTrue, v1alpha1.ReasonServing)
	s.ready("pool-b", metav1.ConditionTrue, v1alpha1.ReasonServing)
	return s
}

func (s *suite) renew(nodes ...string) {
	for _, n := range nodes {
		s.Renew(n, "")
	}
}

func (s *suite) ready(pool string, status metav1.ConditionStatus, reason string) {
	s.t.Helper()
	p := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: pool}}
	s.SetStatus(p, func() { s.SetCondition(p, &p.Status.Status, v1alpha1.Ready, status, reason, "") })
}

func (s *suite) deleteNode(name string) {
	s.t.Helper()
	n, err := s.Node(s.t.Context(), name)
	if err != nil || n == nil {
		s.t.Fatal(n, err)
	}
	s.Delete(n)
}

// where the objects of a pool are: of the pool, volume, snapshot and group.
func (s *suite) where(pool string) string {
	s.t.Helper()
	text := ""
	for i, prefix := range []string{"pool-", "vol-", "snap-", "group-"} {
		o := kit.Kinds[i].New()
		s.Get(o, prefix+pool)
		text += *kit.ViewOf(o).Node
	}
	return text
}

func (s *suite) want(pool, want string) {
	s.t.Helper()
	if got := s.where(pool); got != want {
		s.t.Errorf("pool %s is on %s, not %s", pool, got, want)
	}
}

func TestFollowsDisks(t *testing.T) {
	gone := func(s *suite) {
		s.deleteNode("a")
		s.Step(v1alpha1.AgentSilence)
	}
	for _, c := range []struct {
		name  string
		world func(s *suite)
		moves bool
		says  string // an event
	}{
		{"the node is gone and silent", gone, true, "Moved: the disks are on node b now"},
		{"the node was made again, and is silent", func(s *suite) { gone(s); s.Create(kittest.Node("a", "uid-new", nil)[0]) }, true, "Moved"},
		{"the node is out of service", func(s *suite) {
			var n corev1.Node
			s.Get(&n, "a")
			if _, err := s.Patch(s.t.Context(), &n, func() {
				n.Spec.Taints = []corev1.Taint{{Key: corev1.TaintNodeOutOfService, Effect: corev1.TaintEffectNoExecute}}
			}); err != nil {
				s.t.Fatal(err)
			}
			s.Step(v1alpha1.AgentSilence)
		}, true, "Moved"},
		{"its agent says it is gone", func(s *suite) {
			s.ready("pool-a", metav1.ConditionFalse, v1alpha1.ReasonPoolGone)
			s.Step(v1alpha1.AgentSilence)
			s.renew("a")
		}, true, "Moved"},
		{"another of its pools serves", func(s *suite) {
			s.ready("pool-a", metav1.ConditionFalse, v1alpha1.ReasonPoolGone)
			other := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "fast-a"}, Spec: v1alpha1.PoolSpec{NodeName: "a"}}
			other.Status.UUID, other.Status.Identity = "F", "a"
			s.Create(other)
			s.Step(v1alpha1.AgentSilence)
			s.renew("a")
		}, false, "node a still serves pool fast-a"},
		{"its agent says so for a moment", func(s *suite) { s.ready("pool-a", metav1.ConditionFalse, v1alpha1.ReasonPoolGone) }, false,
			"only for a moment"},
		{"it is served", func(*suite) {}, false, "FoundElsewhere: the agent of node b found disks of this pool, but node a has it: were they copied?"},
		{"it has failed", func(s *suite) {
			s.ready("pool-a", metav1.ConditionFalse, v1alpha1.ReasonPoolFailed)
			s.Step(time.Hour)
			s.renew("a")
		}, false, "node a has it"},
		{"its agent knows nothing yet", func(s *suite) {
			s.ready("pool-a", metav1.ConditionUnknown, v1alpha1.ReasonPoolGone)
			s.Step(time.Hour)
			s.renew("a")
		}, false, "node a has it"},
		{"the node is there and silent", func(s *suite) { s.Step(time.Hour) }, false, "may still run pods on it: delete that Node, or taint it"},
		{"the node is gone, the agent lives", func(s *suite) { s.deleteNode("a") }, false, "node a has it"},
		{"two have it", func(s *suite) { gone(s); s.Renew("c", "A") }, false, "FoundTwice: the agents of nodes b, c found disks"},
		{"the other's lease is old", func(s *suite) { gone(s); s.Renew("c", "A"); s.Step(time.Hour) }, true, "Moved"},
		{"its own agent announces it, too", func(s *suite) { gone(s); s.Renew("a", "A") }, false, "node a has it"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t)
			c.world(s)
			s.Renew("b", "X, A")
			result := s.Settle(s.c, "", "pool-a")
			if c.moves {
				s.want("a", "bbbb")
				var p v1alpha1.Pool
				if s.Get(&p, "pool-a"); p.Spec.NodeUID != "uid-b" || p.Status.Identity != "a" {
					t.Error(p.Spec.NodeUID, p.Status.Identity)
				}
			} else {
				s.want("a", "aaaa")
				if result.RequeueAfter == 0 {
					t.Error("it is not looked at again")
				}
			}
			s.want("b", "bbbb")
			if events := s.TakeEvents(); !slices.ContainsFunc(events, func(e string) bool { return strings.Contains(e, c.says) }) {
				t.Errorf("%q do not say %q", events, c.says)
			}
		})
	}
}

// A lease that another than its holder's agent could have written announces nothing.
func TestForgedLease(t *testing.T) {
	s := start(t)
	s.deleteNode("a")
	s.Step(v1alpha1.AgentSilence)
	s.Renew("b", "A")
	forged := lease(s, "b")
	if _, err := s.Patch(t.Context(), forged, func() { forged.Spec.HolderIdentity = ptr("c") }); err != nil {
		t.Fatal(err)
	}
	s.Settle(s.c, "", "pool-a")
	s.want("a", "aaaa")
}

// The disks go on to a third node, and home again.
func TestThereAndBack(t *testing.T) {
	s := start(t)
	s.deleteNode("a")
	s.Step(v1alpha1.AgentSilence)
	s.Renew("b", "A")
	s.Settle(s.c, "", "pool-a")
	s.want("a", "bbbb")
	s.renew("b")
	s.ready("pool-a", metav1.ConditionFalse, v1alpha1.ReasonPoolGone)
	s.Create(kittest.Node("a", "uid-new", nil)[0])
	s.Step(v1alpha1.AgentSilence)
	s.renew("b")
	s.Renew("a", "A")
	s.Settle(s.c, "", "pool-a")
	s.want("a", "aaaa")
	s.want("b", "bbbb")
}

// Objects that are late follow; those of another pool of the same name do not.
func TestStragglers(t *testing.T) {
	s := start(t)
	s.deleteNode("a")
	s.Step(v1alpha1.AgentSilence)
	s.Renew("b", "A")
	s.Settle(s.c, "", "pool-a")
	late := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "vol-late"},
		Spec: v1alpha1.LocalVolumeSpec{Location: v1alpha1.Location{NodeName: "a", Pool: "pool-a", PoolUUID: "A"}}}
	older := &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "vol-older"},
		Spec: v1alpha1.LocalVolumeSpec{Location: v1alpha1.Location{NodeName: "a", Pool: "pool-a", PoolUUID: "before"}}}
	s.Create(late)
	s.Create(older)
	if got := s.c.strayed(t.Context(), late); len(got) != 1 || got[0].Name != "pool-a" {
		t.Error(got)
	}
	s.Settle(s.c, "", "pool-a")
	s.Get(late, "vol-late")
	s.Get(older, "vol-older")
	if late.Spec.NodeName != "b" || older.Spec.NodeName != "a" {
		t.Error(late.Spec.NodeName, older.Spec.NodeName)
	}
	if got := s.c.strayed(t.Context(), late); got != nil {
		t.Error(got)
	}
}

// Every call fails once, before or after it was done: the pool and all of it are on the new node in the end.
func TestEveryCallFailsOnce(t *testing.T) {
	for n := 1; n < 40; n++ {
		s := start(t)
		s.deleteNode("a")
		s.Step(v1alpha1.AgentSilence)
		s.Renew("b", "A")
		s.Fail(func(call int) error {
			if call == n {
				return kittest.ErrInjected
			}
			return nil
		})
		for range 3 {
			_, _ = s.c.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Name: "pool-a"}})
		}
		s.Fail(nil)
		s.want("a", "bbbb")
		s.want("b", "bbbb")
	}
}

func ptr[T any](v T) *T { return &v }

func lease(s *suite, node string) *coordinationv1.Lease {
	s.t.Helper()
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: kittest.Namespace}}
	s.Get(l, v1alpha1.AgentLease(node))
	return l
}

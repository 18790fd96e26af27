package lostnode

import (
	"strings"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
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

// start with one of each kind on nodes a and b, the agents alive.
func start(t *testing.T) *suite {
	t.Helper()
	var objects []client.Object
	for _, node := range []string{"a", "b"} {
		at := v1alpha1.Location{NodeName: node, Pool: "pool-" + node, PoolUUID: node}
		meta := func(name string) metav1.ObjectMeta {
			return metav1.ObjectMeta{Name: name + "-" + node, Finalizers: []string{v1alpha1.Finalizer}}
		}
		objects = append(objects, append(kittest.Node(node, "uid-"+node, nil),
			&v1alpha1.Pool{ObjectMeta: meta("pool"), Spec: v1alpha1.PoolSpec{NodeName: node, NodeUID: "uid-" + node}},
			&v1alpha1.LocalVolume{ObjectMeta: meta("vol"), Spec: v1alpha1.LocalVolumeSpec{Location: at}},
			&v1alpha1.LocalSnapshot{ObjectMeta: meta("snap"), Spec: v1alpha1.LocalSnapshotSpec{Location: at}},
			&v1alpha1.LocalSnapshotGroup{ObjectMeta: meta("group"), Spec: v1alpha1.LocalSnapshotGroupSpec{Location: at}})...)
	}
	w := kittest.New(t, nil, objects...)
	w.Renew("a", "")
	w.Renew("b", "")
	return &suite{w, New(w.Kit, kit.NewAgents(w.Kit)), t}
}

func (s *suite) deleteNode(name string) {
	s.t.Helper()
	n, err := s.Node(s.t.Context(), name)
	if err != nil || n == nil {
		s.t.Fatal(n, err)
	}
	s.Delete(n)
}

// lost are the states of NodeLost of a node's pool, volume, snapshot and group: T, F, U or -.
func (s *suite) lost(node string) string {
	s.t.Helper()
	text := ""
	for i, prefix := range []string{"pool-", "vol-", "snap-", "group-"} {
		o := kit.Kinds[i].New()
		if !s.Get(o, prefix+node) {
			s.t.Fatalf("%s%s is gone", prefix, node)
		}
		if v := kit.ViewOf(o); v.Desired == v1alpha1.Absent || *v.Node != node || o.GetDeletionTimestamp() != nil {
			s.t.Errorf("%s%s: %s on %s", prefix, node, v.Desired, *v.Node)
		}
		switch c := meta.FindStatusCondition(kit.ViewOf(o).Status.Conditions, v1alpha1.NodeLost); {
		case c == nil:
			text += "-"
		default:
			text += string(c.Status)[:1]
		}
	}
	return text
}

func (s *suite) want(node, want string) {
	s.t.Helper()
	if got := s.lost(node); got != want {
		s.t.Errorf("node %s: NodeLost is %s, not %s", node, got, want)
	}
}

func (s *suite) settle(node string) time.Duration {
	s.t.Helper()
	return s.Settle(s.c, "", node).RequeueAfter
}

func TestGoneAndBack(t *testing.T) {
	s := start(t)
	s.deleteNode("a")
	if again := s.settle("a"); again == 0 {
		t.Error("an agent that falls silent is no event: it must be looked at again")
	}
	s.want("a", "----") // its agent lives
	s.Step(v1alpha1.AgentSilence)
	s.settle("a")
	s.want("a", "U---")
	s.Step(s.NodeLostAfter - time.Second)
	s.c = New(s.Kit, kit.NewAgents(s.Kit)) // another leader
	if again := s.settle("a"); again != time.Second {
		t.Errorf("again after %s", again)
	}
	s.want("a", "U---")
	s.Step(time.Second)
	s.settle("a")
	s.want("a", "TTTT")
	s.want("b", "----")
	if events := s.TakeEvents(); len(events) != 1 || !strings.HasPrefix(events[0], "Pool/pool-a NodeLost: node a is gone since ") {
		t.Errorf("%q", events)
	}
	// A snapshot that was asked for just before, and whose object comes late.
	late := &v1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: "snap-late"},
		Spec: v1alpha1.LocalSnapshotSpec{Location: v1alpha1.Location{NodeName: "a"}}}
	s.Create(late)
	s.settle("a")
	s.Get(late, "snap-late")
	if !meta.IsStatusConditionTrue(late.Status.Conditions, v1alpha1.NodeLost) {
		t.Error("what is made later is not marked")
	}
	// Its Node is made again; its agent is not there yet.
	s.Create(kittest.Node("a", "uid-new", nil)[0])
	s.settle("a")
	s.want("a", "TTTT")
	s.Renew("a", "")
	s.settle("a")
	s.want("a", "----")
	var pool v1alpha1.Pool
	if s.Get(&pool, "pool-a"); pool.Spec.NodeUID != "uid-new" {
		t.Error(pool.Spec.NodeUID)
	}
}

// A node that is off, drained or cut off has its Node object: nothing is marked, however long it takes.
func TestSilentAgentAlone(t *testing.T) {
	s := start(t)
	s.Step(24 * time.Hour)
	s.settle("a")
	s.want("a", "----")
}

// The Node is made again under its name, and no agent comes: it is another node.
func TestSameNameIsNotTheSameNode(t *testing.T) {
	s := start(t)
	s.Step(time.Hour)
	s.deleteNode("a")
	s.Create(kittest.Node("a", "uid-new", nil)[0])
	s.settle("a")
	s.want("a", "U---")
	s.Step(s.NodeLostAfter)
	s.settle("a")
	s.want("a", "TTTT")
}

// Back within the time: it begins anew the next time.
func TestBackInTime(t *testing.T) {
	s := start(t)
	for range 3 {
		s.deleteNode("a")
		s.Step(v1alpha1.AgentSilence)
		s.settle("a")
		s.Step(s.NodeLostAfter - time.Minute)
		s.settle("a")
		s.want("a", "U---")
		s.Create(kittest.Node("a", "uid-a", nil)[0])
		s.settle("a")
		s.want("a", "----")
		s.Renew("a", "")
	}
}

// The clock of a node is wrong by an hour: its agent lives as long as its renewals are seen to go on.
func TestWrongClock(t *testing.T) {
	for _, wrong := range []time.Duration{-time.Hour, time.Hour} {
		s := start(t)
		s.deleteNode("a")
		renew := func() {
			s.Step(wrong)
			s.Renew("a", "")
			s.Step(-wrong)
			s.Step(v1alpha1.AgentRenewal)
			s.settle("a")
		}
		renew()
		renew()
		s.want("a", "----")
		for range 100 {
			renew()
		}
		s.want("a", "----")
		s.Step(v1alpha1.AgentSilence)
		s.settle("a")
		s.Step(s.NodeLostAfter)
		s.settle("a")
		s.want("a", "TTTT")
	}
}

// A Pool that somebody removed with force leaves its volumes' conditions to keep the time.
func TestWithoutPool(t *testing.T) {
	s := start(t)
	var pool v1alpha1.Pool
	s.Get(&pool, "pool-a")
	if _, err := s.Patch(t.Context(), &pool, func() { pool.Finalizers = nil }); err != nil {
		t.Fatal(err)
	}
	s.Delete(&pool)
	s.deleteNode("a")
	s.Step(time.Hour)
	s.settle("a")
	s.Step(s.NodeLostAfter)
	s.settle("a")
	var v v1alpha1.LocalVolume
	if s.Get(&v, "vol-a"); !meta.IsStatusConditionTrue(v.Status.Conditions, v1alpha1.NodeLost) {
		t.Errorf("%+v", v.Status)
	}
}

// Every call fails once, before or after it was done, on the way there and back.
func TestEveryCallFailsOnce(t *testing.T) {
	for n := 1; n < 40; n++ {
		s := start(t)
		s.deleteNode("a")
		s.Step(time.Hour)
		s.Fail(func(call int) error {
			if call == n {
				return kittest.ErrInjected
			}
			return nil
		})
		run := func() {
			for range 3 {
				_, _ = s.c.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Name: "a"}})
			}
		}
		run()
		s.Step(s.NodeLostAfter)
		run()
		calls := s.Calls()
		s.Fail(nil)
		s.want("a", "TTTT")
		s.Create(kittest.Node("a", "uid-new", nil)[0])
		s.Renew("a", "")
		s.Fail(func(call int) error {
			if call+calls == n {
				return kittest.ErrInjected
			}
			return nil
		})
		run()
		s.Fail(nil)
		s.want("a", "----")
	}
}

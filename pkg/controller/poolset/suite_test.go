package poolset

import (
	"fmt"
	"strings"
	"testing"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit/kittest"
)

func member(path string) v1alpha1.Member {
	return v1alpha1.Member{Directory: &v1alpha1.DirectoryMember{Path: path, PercentOfFree: 40}}
}

func set(name string, labels map[string]string) *v1alpha1.PoolSet {
	s := &v1alpha1.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: name}, Spec: v1alpha1.PoolSetSpec{
		Template: v1alpha1.PoolTemplate{Members: []v1alpha1.Member{member("/pool")}, Allocation: v1alpha1.Striped, OvercommitPercent: 200}}}
	if labels != nil {
		s.Spec.NodeSelector = &metav1.LabelSelector{MatchLabels: labels}
	}
	return s
}

type suite struct {
	*kittest.World
	c *Controller
	t *testing.T
}

func start(t *testing.T, objects ...[]client.Object) *suite {
	t.Helper()
	var all []client.Object
	for _, o := range objects {
		all = append(all, o...)
	}
	w := kittest.New(t, nil, all...)
	return &suite{w, New(w.Kit), t}
}

func one(o ...client.Object) []client.Object { return o }

func (s *suite) pool(name string) *v1alpha1.Pool {
	s.t.Helper()
	p := &v1alpha1.Pool{}
	if !s.Get(p, name) {
		s.t.Fatalf("there is no pool %s", name)
	}
	return p
}

// serve plays the agent that made the pool.
func (s *suite) serve(name, uuid string) {
	s.t.Helper()
	p := s.pool(name)
	s.SetStatus(p, func() {
		p.Status.UUID, p.Status.Identity = uuid, p.Spec.NodeName
		meta.SetStatusCondition(&p.Status.Conditions, metav1.Condition{Type: v1alpha1.Ready, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonServing})
	})
}

// say plays the agent that sets a condition to True.
func (s *suite) say(name, condition string) {
	s.t.Helper()
	p := s.pool(name)
	s.SetStatus(p, func() {
		meta.SetStatusCondition(&p.Status.Conditions, metav1.Condition{Type: condition, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonDone})
	})
}

func (s *suite) status(name string) (v1alpha1.PoolSetStatus, string) {
	s.t.Helper()
	var set v1alpha1.PoolSet
	s.Get(&set, name)
	ready := meta.FindStatusCondition(set.Status.Conditions, v1alpha1.Ready)
	if ready == nil {
		s.t.Fatalf("PoolSet %s has no condition Ready", name)
	}
	return set.Status, fmt.Sprintf("%s: %s", ready.Status, ready.Message)
}

func wantText(t *testing.T, got string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(got, p) {
			t.Errorf("%q does not say %q", got, p)
		}
	}
}

func TestMakesPools(t *testing.T) {
	disks := map[string]string{"disks": "yes"}
	s := start(t, kittest.Node("a", "uid-a", disks), kittest.Node("b", "uid-b", disks), kittest.Node("other", "uid-o", nil),
		one(set("fast", disks)), kittest.Node("no-plugin", "uid-n", disks)[:1])
	s.Settle(s.c, "", "fast")
	a := s.pool("fast-a")
	if a.Spec.NodeName != "a" || a.Spec.NodeUID != "uid-a" || a.Spec.PoolSet != "fast" || a.Spec.Members[0].Directory.Path != "/pool" ||
		a.Spec.DesiredState != v1alpha1.Present || len(a.Finalizers) != 1 || a.Finalizers[0] != v1alpha1.Finalizer || len(a.OwnerReferences) != 0 {
		t.Errorf("%+v", a)
	}
	st, ready := s.status("fast")
	if st.Nodes != 2 || st.Ready != 0 {
		t.Errorf("%+v", st)
	}
	wantText(t, ready, "False", "node a: its pool is not made yet", "node b")
	s.serve("fast-a", "1")
	s.serve("fast-b", "2")
	s.Settle(s.c, "", "fast")
	if st, ready := s.status("fast"); st.Ready != 2 || ready != "True: 2 pools serve" {
		t.Error(st.Ready, ready)
	}
	var pools v1alpha1.PoolList
	if err := s.Client.List(t.Context(), &pools); err != nil || len(pools.Items) != 2 {
		t.Error(len(pools.Items), err)
	}
}

// The plugin comes and goes (an upgrade, a kubelet that restarts): a pool is made once it is there, and stays when it is away.
func TestPluginAway(t *testing.T) {
	s := start(t, kittest.Node("a", "uid-a", nil)[:1], one(set("default", nil)))
	s.Settle(s.c, "", "default")
	if _, ready := s.status("default"); !strings.Contains(ready, "no node is chosen") {
		t.Error(ready)
	}
	plugin := kittest.Node("a", "uid-a", nil)[1]
	s.Create(plugin)
	s.Settle(s.c, "", "default")
	s.serve("default-a", "1")
	s.Delete(&storagev1.CSINode{ObjectMeta: metav1.ObjectMeta{Name: "a"}})
	s.Step(time.Hour)
	s.Settle(s.c, "", "default")
	if p := s.pool("default-a"); p.Spec.DesiredState != v1alpha1.Present || p.DeletionTimestamp != nil {
		t.Errorf("%+v", p.Spec)
	}
}

func TestPoolsStay(t *testing.T) {
	for _, c := range []struct {
		name string
		in   client.Object
	}{
		{"a volume", &v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "vol-1"},
			Spec: v1alpha1.LocalVolumeSpec{Location: v1alpha1.Location{NodeName: "a", Pool: "fast-a", PoolUUID: "1"}}}},
		{"a snapshot", &v1alpha1.LocalSnapshot{ObjectMeta: metav1.ObjectMeta{Name: "snap-1"},
			Spec: v1alpha1.LocalSnapshotSpec{Location: v1alpha1.Location{NodeName: "a", Pool: "fast-a", PoolUUID: "1"}}}},
		{"an orphan", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := start(t, kittest.Node("a", "uid-a", map[string]string{"disks": "yes"}), one(set("fast", map[string]string{"disks": "yes"})))
			s.Settle(s.c, "", "fast")
			s.serve("fast-a", "1")
			if c.in != nil {
				s.Create(c.in)
			} else {
				p := s.pool("fast-a")
				s.SetStatus(p, func() {
					p.Status.Orphans = []v1alpha1.Orphan{{Name: "vol-9", Kind: "LocalVolume", Size: resource.MustParse("1Gi")}}
				})
			}
			s.relabel("a", nil)
			s.Settle(s.c, "", "fast")
			s.Step(time.Hour)
			s.Settle(s.c, "", "fast")
			p := s.pool("fast-a")
			if p.Spec.DesiredState != v1alpha1.Present || p.DeletionTimestamp != nil || !meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.Unselected) {
				t.Errorf("%+v %+v", p.Spec, p.Status.Conditions)
			}
			// The label returns.
			s.relabel("a", map[string]string{"disks": "yes"})
			s.Settle(s.c, "", "fast")
			if p := s.pool("fast-a"); meta.FindStatusCondition(p.Status.Conditions, v1alpha1.Unselected) != nil {
				t.Errorf("%+v", p.Status.Conditions)
			}
		})
	}
}

func (s *suite) relabel(name string, labels map[string]string) {
	s.t.Helper()
	n, err := s.Node(s.t.Context(), name)
	if err != nil || n == nil {
		s.t.Fatal(n, err)
	}
	before := n.DeepCopy()
	n.Labels = labels
	if err := s.Client.Patch(s.t.Context(), n, client.MergeFrom(before)); err != nil {
		s.t.Fatal(err)
	}
}

func TestEmptyPoolIsGivenUp(t *testing.T) {
	disks := map[string]string{"disks": "yes"}
	s := start(t, kittest.Node("a", "uid-a", disks), one(set("fast", disks)))
	s.Settle(s.c, "", "fast")
	s.serve("fast-a", "1")
	s.relabel("a", nil)
	if again := s.Settle(s.c, "", "fast").RequeueAfter; again != s.UnselectedAfter {
		t.Errorf("again after %s", again)
	}
	if p := s.pool("fast-a"); p.Spec.DesiredState != v1alpha1.Present {
		t.Error("given up at once: a node that registers again would lose its pool")
	}
	s.Step(s.UnselectedAfter)
	s.Settle(s.c, "", "fast")
	if p := s.pool("fast-a"); p.Spec.DesiredState != v1alpha1.Absent || p.DeletionTimestamp != nil {
		t.Errorf("%s, %v: the second key comes after the agent's answer", p.Spec.DesiredState, p.DeletionTimestamp)
	}
	s.say("fast-a", v1alpha1.Deleted)
	s.Settle(s.c, "", "fast")
	if p := s.pool("fast-a"); p.DeletionTimestamp == nil {
		t.Error("not deleted")
	}
}

// What is not there to choose any more gives up nothing: the Node, the PoolSet.
func TestNothingIsGivenUpByWhatIsGone(t *testing.T) {
	s := start(t, kittest.Node("a", "uid-a", nil), one(set("default", nil)))
	s.Settle(s.c, "", "default")
	s.serve("default-a", "1")
	n, _ := s.Node(t.Context(), "a")
	s.Delete(n)
	s.Step(time.Hour)
	s.Settle(s.c, "", "default")
	s.Delete(set("default", nil))
	s.Settle(s.c, "", "default")
	if p := s.pool("default-a"); p.Spec.DesiredState != v1alpha1.Present || p.DeletionTimestamp != nil || len(p.Status.Conditions) != 1 {
		t.Errorf("%+v", p)
	}
}

func TestTemplate(t *testing.T) {
	s := start(t, kittest.Node("a", "uid-a", nil), one(set("default", nil)))
	s.Settle(s.c, "", "default")
	change := func(f func(*v1alpha1.PoolTemplate)) string {
		t.Helper()
		var set v1alpha1.PoolSet
		s.Get(&set, "default")
		before := set.DeepCopy()
		f(&set.Spec.Template)
		if err := s.Client.Patch(t.Context(), &set, client.MergeFrom(before)); err != nil {
			t.Fatal(err)
		}
		s.Settle(s.c, "", "default")
		s.Get(&set, "default")
		c := meta.FindStatusCondition(set.Status.Conditions, v1alpha1.TemplateApplied)
		return string(c.Status) + " " + c.Message
	}
	if got := change(func(p *v1alpha1.PoolTemplate) {
		p.OvercommitPercent = 300
		p.Members = append(p.Members, member("/second"))
	}); got != "True " {
		t.Error(got)
	}
	if p := s.pool("default-a"); p.Spec.OvercommitPercent != 300 || len(p.Spec.Members) != 2 || p.Spec.Members[1].Directory.Path != "/second" {
		t.Errorf("%+v", p.Spec)
	}
	wantText(t, change(func(p *v1alpha1.PoolTemplate) {
		p.OvercommitPercent = 100
		p.Members = []v1alpha1.Member{member("/second"), member("/pool"), member("/third")}
	}), "False", "pool default-a: its member 0 is /pool, and template.members[0] is /second")
	if p := s.pool("default-a"); p.Spec.OvercommitPercent != 100 || len(p.Spec.Members) != 2 {
		t.Errorf("%+v", p.Spec)
	}
	wantText(t, change(func(p *v1alpha1.PoolTemplate) { p.Members = []v1alpha1.Member{member("/pool")} }), "False", "/second",
		"rowanctl pool member remove")
	wantText(t, change(func(p *v1alpha1.PoolTemplate) {
		p.Members = []v1alpha1.Member{member("/pool"), member("/second")}
		p.Members[0].Directory.PercentOfFree = 50
	}), "False", "/pool", "other settings")
	wantText(t, change(func(p *v1alpha1.PoolTemplate) {
		p.Members = []v1alpha1.Member{member("/pool"), member("/second")}
		p.Allocation = v1alpha1.Filled
	}), "False", "its allocation is Striped")
}

func TestNames(t *testing.T) {
	long := strings.Repeat("n", 80)
	s := start(t, kittest.Node("c", "uid-c", nil), kittest.Node("b-c", "uid-bc", nil), kittest.Node(long, "uid-l", nil),
		one(set("a-b", nil), set("a", map[string]string{"none": "x"})))
	s.Settle(s.c, "", "a-b")
	s.relabel("b-c", map[string]string{"none": "x"})
	s.Settle(s.c, "", "a") // a-b-c is the pool of a-b on c
	var pools v1alpha1.PoolList
	if err := s.Client.List(t.Context(), &pools, client.MatchingFields{"spec.poolSet": "a"}); err != nil || len(pools.Items) != 1 {
		t.Fatal(pools.Items, err)
	}
	if p := pools.Items[0]; p.Spec.NodeName != "b-c" || !strings.HasPrefix(p.Name, "a-b-c-") || p.Name != hashedName("a", "b-c", "uid-bc") {
		t.Error(p.Name)
	}
	if name := hashedName("a-b", long, "uid-l"); len(name) > 63 || s.pool(name).Spec.NodeName != long {
		t.Error(name)
	}
	if name := hashedName("a-b", strings.Repeat("n", 49)+".nnn.nnn", "u"); len(name) > 63 || strings.Contains(name, ".-") {
		t.Error(name)
	}
}

// Every call fails once, before or after it was done; in the end all is as if none had.
func TestEveryCallFailsOnce(t *testing.T) {
	for n := 1; ; n++ {
		disks := map[string]string{"disks": "yes"}
		s := start(t, kittest.Node("a", "uid-a", disks), kittest.Node("b", "uid-b", disks), one(set("fast", disks)))
		failed := false
		s.Fail(func(call int) error {
			if call == n && !failed {
				failed = true
				return kittest.ErrInjected
			}
			return nil
		})
		run := func() {
			for range 4 {
				_, _ = s.c.Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Name: "fast"}})
			}
		}
		run()
		calls := s.Calls()
		s.Fail(nil)
		s.serve("fast-a", "1")
		s.serve("fast-b", "2")
		s.relabel("a", nil)
		s.Create(&v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "vol-b"},
			Spec: v1alpha1.LocalVolumeSpec{Location: v1alpha1.Location{NodeName: "b", Pool: "fast-b", PoolUUID: "2"}}})
		s.relabel("b", nil)
		s.Fail(func(call int) error {
			if call+calls == n {
				failed = true
				return kittest.ErrInjected
			}
			return nil
		})
		run()
		s.Step(s.UnselectedAfter)
		run()
		calls += s.Calls()
		s.Fail(nil)
		if a, b := s.pool("fast-a"), s.pool("fast-b"); a.Spec.DesiredState != v1alpha1.Absent || b.Spec.DesiredState != v1alpha1.Present {
			t.Fatalf("call %d failed: a %s, b %s", n, a.Spec.DesiredState, b.Spec.DesiredState)
		}
		if !failed {
			if n < 20 {
				t.Errorf("only %d calls of %d were failed", n-1, calls)
			}
			return
		}
	}
}

package poolset

import (
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit/kittest"
)

func (s *suite) move(name, node string) {
	s.t.Helper()
	p := s.pool(name)
	before := p.DeepCopy()
	p.Spec.NodeName = node
	if err := s.Client.Patch(s.t.Context(), p, client.MergeFrom(before)); err != nil {
		s.t.Fatal(err)
	}
}

// Disks moved from a to b: the pool that was never made on b makes room, and a, returned empty, gets none while b has its identity.
func TestMovedPoolReplacesUnmadeOne(t *testing.T) {
	s := start(t, kittest.Node("a", "uid-a", nil), kittest.Node("b", "uid-b", nil), one(set("default", nil)))
	s.Settle(s.c, "", "default")
	s.serve("default-a", "1")
	s.move("default-a", "b")
	s.Settle(s.c, "", "default")
	if p := s.pool("default-b"); p.Spec.DesiredState != v1alpha1.Absent {
		t.Error("the pool that was never made stays beside the one that came")
	}
	if p := s.pool("default-a"); p.Spec.DesiredState != v1alpha1.Present || p.Spec.NodeName != "b" {
		t.Errorf("%+v", p.Spec)
	}
	_, ready := s.status("default")
	wantText(t, ready, "False", "node a gets no pool: its name is the node identity of node b")

	// The disks return.
	s.move("default-a", "a")
	s.say("default-b", v1alpha1.Deleted)
	s.Settle(s.c, "", "default")
	if p := s.pool("default-b"); p.DeletionTimestamp == nil {
		t.Error("not deleted")
	}
	if p := s.pool("default-a"); p.DeletionTimestamp != nil || p.Spec.DesiredState != v1alpha1.Present {
		t.Errorf("%+v", p.Spec)
	}
}

// Two pools of a set on one node that both were made are both kept, whatever they hold.
func TestTwoMadePoolsStay(t *testing.T) {
	s := start(t, kittest.Node("a", "uid-a", nil), kittest.Node("b", "uid-b", nil), one(set("default", nil)))
	s.Settle(s.c, "", "default")
	s.serve("default-a", "1")
	s.serve("default-b", "2")
	s.move("default-a", "b")
	s.Settle(s.c, "", "default")
	for _, name := range []string{"default-a", "default-b"} {
		if p := s.pool(name); p.Spec.DesiredState != v1alpha1.Present || p.DeletionTimestamp != nil {
			t.Errorf("%s: %+v", name, p.Spec)
		}
	}
}

// What the cache says is looked at again before a pool is given up: a volume, or a pool that was made, that the cache has not seen yet.
func TestGivingUpLooksLive(t *testing.T) {
	s := start(t, kittest.Node("a", "uid-a", map[string]string{"disks": "yes"}), one(set("fast", map[string]string{"disks": "yes"})))
	s.Settle(s.c, "", "fast")
	s.serve("fast-a", "1")
	s.relabel("a", nil)
	old := kittest.New(t, nil, append(kittest.Node("a", "uid-a", nil), set("fast", map[string]string{"disks": "yes"}), s.pool("fast-a"))...)
	s.Create(&v1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "vol-1"},
		Spec: v1alpha1.LocalVolumeSpec{Location: v1alpha1.Location{NodeName: "a", Pool: "fast-a", PoolUUID: "1"}}})
	old.Live = s.Client
	c := New(old.Kit)
	old.Settle(c, "", "fast")
	old.Step(old.UnselectedAfter)
	old.Settle(c, "", "fast")
	var p v1alpha1.Pool
	if old.Get(&p, "fast-a"); p.Spec.DesiredState != v1alpha1.Present {
		t.Error("given up with a volume that the cache did not show")
	}
}

func TestWrongSelectorSaysSo(t *testing.T) {
	wrong := set("default", nil)
	wrong.Spec.NodeSelector = &metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{{Key: "a", Operator: "Among"}}}
	s := start(t, kittest.Node("a", "uid-a", nil), one(wrong))
	s.Settle(s.c, "", "default")
	if _, ready := s.status("default"); !strings.Contains(ready, `spec.nodeSelector: "Among" is not a valid label selector operator`) {
		t.Error(ready)
	}
}

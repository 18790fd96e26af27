package finalizer

import (
	"fmt"
	"testing"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
	"github.com/rowan-csi/rowan/pkg/controller/kit/kittest"
)

const other = "somebody/else"

// object of a kind with a finalizer of somebody else's, so that it can be looked at when ours is gone.
func object(k kit.Kind, desired v1alpha1.DesiredState) client.Object {
	o := k.New()
	o.SetName("thing")
	o.SetFinalizers([]string{v1alpha1.Finalizer, other})
	switch o := o.(type) {
	case *v1alpha1.Pool:
		o.Spec.DesiredState = desired
	case *v1alpha1.LocalVolume:
		o.Spec.DesiredState = desired
	case *v1alpha1.LocalSnapshot:
		o.Spec.DesiredState = desired
	case *v1alpha1.LocalSnapshotGroup:
		o.Spec.DesiredState = desired
	}
	return o
}

// All kinds, in all states that matter: only both keys together with the agent's word let the object go.
func TestOnlyWithBothKeysAndTheAgentsWord(t *testing.T) {
	for _, k := range kit.Kinds {
		for _, desired := range []v1alpha1.DesiredState{v1alpha1.Present, v1alpha1.Absent, ""} {
			for _, deleted := range []bool{false, true} {
				for _, said := range []metav1.ConditionStatus{"", metav1.ConditionFalse, metav1.ConditionUnknown, metav1.ConditionTrue} {
					t.Run(fmt.Sprintf("%s %q deleted=%v said=%q", k.Name, desired, deleted, said), func(t *testing.T) {
						o := object(k, desired)
						w := kittest.New(t, nil, o)
						w.SetStatus(o, func() {
							s := kit.ViewOf(o).Status
							for _, condition := range []string{v1alpha1.NodeLost, v1alpha1.DeletionNotConfirmed, v1alpha1.Lost} {
								w.SetCondition(o, s, condition, metav1.ConditionTrue, "Any", "")
							}
							if said != "" {
								w.SetCondition(o, s, v1alpha1.Deleted, said, v1alpha1.ReasonDone, "")
							}
						})
						if deleted {
							w.Delete(o)
						}
						c := New(w.Kit, k)
						w.Settle(c, "", "thing")
						w.Step(w.FinalizeAfter)
						w.Settle(c, "", "thing")
						w.Get(o, "thing")
						gone := len(o.GetFinalizers()) == 1 && o.GetFinalizers()[0] == other
						if want := desired == v1alpha1.Absent && deleted && said == metav1.ConditionTrue; gone != want {
							t.Errorf("finalizers %v", o.GetFinalizers())
						}
					})
				}
			}
		}
	}
}

// The call that asked for the deletion is normally first, and not disturbed.
func TestWaitsForTheCaller(t *testing.T) {
	k := kit.Kinds[1]
	o := object(k, v1alpha1.Absent)
	w := kittest.New(t, nil, o)
	w.SetStatus(o, func() {
		w.SetCondition(o, kit.ViewOf(o).Status, v1alpha1.Deleted, metav1.ConditionTrue, v1alpha1.ReasonDone, "")
	})
	w.Delete(o)
	c := New(w.Kit, k)
	if again := w.Settle(c, "", "thing").RequeueAfter; again != w.FinalizeAfter {
		t.Errorf("again after %s", again)
	}
	w.Get(o, "thing")
	if len(o.GetFinalizers()) != 2 {
		t.Error(o.GetFinalizers())
	}
}

func TestEveryCallFailsOnce(t *testing.T) {
	k := kit.Kinds[2]
	for n := 1; n < 8; n++ {
		o := object(k, v1alpha1.Absent)
		w := kittest.New(t, nil, o)
		w.SetStatus(o, func() {
			meta.SetStatusCondition(&kit.ViewOf(o).Status.Conditions, metav1.Condition{Type: v1alpha1.Deleted, Status: metav1.ConditionTrue, Reason: "Done",
				LastTransitionTime: metav1.NewTime(w.Clock.Now())})
		})
		w.Delete(o)
		w.Step(w.FinalizeAfter)
		w.Fail(func(call int) error {
			if call == n {
				return kittest.ErrInjected
			}
			return nil
		})
		for range 3 {
			_, _ = New(w.Kit, k).Reconcile(t.Context(), reconcile.Request{NamespacedName: client.ObjectKey{Name: "thing"}})
		}
		w.Fail(nil)
		w.Get(o, "thing")
		if len(o.GetFinalizers()) != 1 {
			t.Errorf("call %d failed: %v", n, o.GetFinalizers())
		}
	}
}

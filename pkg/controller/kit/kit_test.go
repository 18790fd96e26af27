package kit_test

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
	"github.com/rowan-csi/rowan/pkg/controller/kit/kittest"
)

func TestCalm(t *testing.T) {
	conflict := fmt.Errorf("patch x: %w", apierrors.NewConflict(schema.GroupResource{}, "x", errors.New("old")))
	for _, c := range []struct {
		err   error
		again bool
		want  bool
	}{{conflict, true, false}, {kittest.ErrInjected, false, true}, {nil, false, false}} {
		r := kit.Calm(reconcile.Func(func(context.Context, reconcile.Request) (reconcile.Result, error) { return reconcile.Result{}, c.err }))
		result, err := r.Reconcile(t.Context(), reconcile.Request{})
		if (err != nil) != c.want || (result.RequeueAfter > 0) != c.again {
			t.Errorf("%v: %v, %v", c.err, result, err)
		}
	}
}

// An old view of an object changes nothing: the lock of all controllers.
func TestOldViewsConflict(t *testing.T) {
	w := kittest.New(t, nil, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "p"}, Spec: v1alpha1.PoolSpec{NodeName: "a"}})
	var old, now v1alpha1.Pool
	w.Get(&old, "p")
	w.Get(&now, "p")
	w.SetStatus(&now, func() { now.Status.UUID = "1" })
	if _, err := w.Patch(t.Context(), &old, func() { old.Spec.NodeName = "b" }); !apierrors.IsConflict(err) {
		t.Error(err)
	}
	w.Get(&old, "p")
	w.Get(&now, "p")
	if there, err := w.Patch(t.Context(), &now, func() { now.Spec.NodeName = "c" }); err != nil || !there {
		t.Error(there, err)
	}
	if err := w.PatchStatus(t.Context(), &old, func() { old.Status.UUID = "2" }); !apierrors.IsConflict(err) {
		t.Error(err)
	}
}

// A condition of another writer is left as it is.
func TestConditionsOfOthersStay(t *testing.T) {
	w := kittest.New(t, nil, &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "p"}})
	p := &v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "p"}}
	w.SetStatus(p, func() {
		w.SetCondition(p, &p.Status.Status, v1alpha1.Ready, metav1.ConditionTrue, v1alpha1.ReasonServing, "")
	})
	w.SetStatus(p, func() { w.SetCondition(p, &p.Status.Status, v1alpha1.NodeLost, metav1.ConditionTrue, "NodeGone", "") })
	w.SetStatus(p, func() { meta.RemoveStatusCondition(&p.Status.Conditions, v1alpha1.NodeLost) })
	if !meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.Ready) || len(p.Status.Conditions) != 1 {
		t.Errorf("%+v", p.Status.Conditions)
	}
}

func TestShorten(t *testing.T) {
	if kit.Shorten("short") != "short" {
		t.Error("a short text was changed")
	}
	if got := kit.Shorten(strings.Repeat("ä", 2000)); len(got) > 1024 || !utf8.ValidString(got) {
		t.Error(len(got))
	}
}

func TestNodeOf(t *testing.T) {
	node := "a"
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.AgentLease("a")}}
	if kit.NodeOf(l) != "" {
		t.Error("a lease without a holder")
	}
	l.Spec.HolderIdentity = &node
	if kit.NodeOf(l) != "a" {
		t.Error(kit.NodeOf(l))
	}
	l.Name = "rowan-controller"
	if kit.NodeOf(l) != "" {
		t.Error("a lease that is no agent's")
	}
}

package cluster

import (
	"fmt"

	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// state is what volumes, snapshots and groups have in common.
type state struct {
	noun       string // "volume", "snapshot" or "snapshot group"
	node       string
	absent     bool // its removal is wanted, for good
	conditions []metav1.Condition
	generation int64
}

func stateOf(obj client.Object) state {
	s := state{generation: obj.GetGeneration()}
	switch o := obj.(type) {
	case *v1alpha1.LocalVolume:
		s.noun, s.node, s.absent = "volume", o.Spec.NodeName, o.Spec.DesiredState == v1alpha1.Absent
		s.conditions = o.Status.Conditions
	case *v1alpha1.LocalSnapshot:
		s.noun, s.node, s.absent = "snapshot", o.Spec.NodeName, o.Spec.DesiredState == v1alpha1.Absent
		s.conditions = o.Status.Conditions
	case *v1alpha1.LocalSnapshotGroup:
		s.noun, s.node, s.absent = "snapshot group", o.Spec.NodeName, o.Spec.DesiredState == v1alpha1.Absent
		s.conditions = o.Status.Conditions
	default:
		panic(fmt.Sprintf("state of %T", obj))
	}
	return s
}

// is says whether a condition is True.
func (s state) is(condition string) bool { return meta.IsStatusConditionTrue(s.conditions, condition) }

// refused is a condition that is False for the spec as it is now, nil if there is none. What it says of an older spec does not count.
func (s state) refused(condition string) *metav1.Condition {
	c := meta.FindStatusCondition(s.conditions, condition)
	if c == nil || c.Status != metav1.ConditionFalse || c.ObservedGeneration < s.generation {
		return nil
	}
	return c
}

// gone says whether nothing is left of it for anybody but its node: it is deleted, or it is a tombstone of a lost node.
func (s state) gone() bool {
	return s.is(v1alpha1.Deleted) || s.absent && s.is(v1alpha1.NodeLost)
}

package kit

import (
	"context"
	"fmt"

	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// Kind is one of the kinds that live on a node.
type Kind struct {
	Name string
	New  func() client.Object
	List func() client.ObjectList
}

// Kinds are all kinds that live on a node: a Pool, and what is in pools.
var Kinds = []Kind{
	{"Pool", func() client.Object { return &v1alpha1.Pool{} }, func() client.ObjectList { return &v1alpha1.PoolList{} }},
	{"LocalVolume", func() client.Object { return &v1alpha1.LocalVolume{} }, func() client.ObjectList { return &v1alpha1.LocalVolumeList{} }},
	{"LocalSnapshot", func() client.Object { return &v1alpha1.LocalSnapshot{} }, func() client.ObjectList { return &v1alpha1.LocalSnapshotList{} }},
	{"LocalSnapshotGroup", func() client.Object { return &v1alpha1.LocalSnapshotGroup{} },
		func() client.ObjectList { return &v1alpha1.LocalSnapshotGroupList{} }},
}

// View is what those kinds have in common, as pointers into the object.
type View struct {
	Node    *string
	Pool    string // the name of its pool; a Pool's own
	UUID    string // of its pool
	Desired v1alpha1.DesiredState
	Status  *v1alpha1.Status
}

// ViewOf an object of Kinds; any other panics.
func ViewOf(o client.Object) View {
	switch o := o.(type) {
	case *v1alpha1.Pool:
		return View{&o.Spec.NodeName, o.Name, o.Status.UUID, o.Spec.DesiredState, &o.Status.Status}
	case *v1alpha1.LocalVolume:
		return View{&o.Spec.NodeName, o.Spec.Pool, o.Spec.PoolUUID, o.Spec.DesiredState, &o.Status.Status}
	case *v1alpha1.LocalSnapshot:
		return View{&o.Spec.NodeName, o.Spec.Pool, o.Spec.PoolUUID, o.Spec.DesiredState, &o.Status.Status}
	case *v1alpha1.LocalSnapshotGroup:
		return View{&o.Spec.NodeName, o.Spec.Pool, o.Spec.PoolUUID, o.Spec.DesiredState, &o.Status.Status}
	default:
		panic(fmt.Sprintf("%T does not live on a node", o))
	}
}

// The fields that the cache has an index of; the API server knows the first two as selectable fields, under the same names.
const (
	FieldNode     = "spec.nodeName"
	FieldPool     = "spec.pool"
	FieldPoolSet  = "spec.poolSet"
	FieldPoolUUID = "spec.poolUUID"
)

// Indexes are what a cache must index for List to select by those fields.
func Indexes(add func(o client.Object, field string, extract client.IndexerFunc) error) error {
	one := func(get func(o client.Object) string) client.IndexerFunc {
		return func(o client.Object) []string { return []string{get(o)} }
	}
	for _, k := range Kinds {
		if err := add(k.New(), FieldNode, one(func(o client.Object) string { return *ViewOf(o).Node })); err != nil {
			return fmt.Errorf("index %s by node: %w", k.Name, err)
		}
		if k.Name == "Pool" {
			continue
		}
		if err := add(k.New(), FieldPool, one(func(o client.Object) string { return ViewOf(o).Pool })); err != nil {
			return fmt.Errorf("index %s by pool: %w", k.Name, err)
		}
		if err := add(k.New(), FieldPoolUUID, one(func(o client.Object) string { return ViewOf(o).UUID })); err != nil {
			return fmt.Errorf("index %s by its pool's identity: %w", k.Name, err)
		}
	}
	if err := add(&v1alpha1.Pool{}, FieldPoolSet, one(func(o client.Object) string { return o.(*v1alpha1.Pool).Spec.PoolSet })); err != nil {
		return fmt.Errorf("index Pool by set: %w", err)
	}
	return nil
}

// Objects lists one kind.
func Objects(ctx context.Context, c client.Reader, k Kind, opts ...client.ListOption) ([]client.Object, error) {
	list := k.List()
	if err := c.List(ctx, list, opts...); err != nil {
		return nil, fmt.Errorf("list %ss: %w", k.Name, err)
	}
	var objects []client.Object
	err := meta.EachListItem(list, func(o runtime.Object) error {
		objects = append(objects, o.(client.Object))
		return nil
	})
	return objects, err
}

// PatchStatus writes what change did to the object's status, if anything. An object that is gone needs none.
func (k *Kit) PatchStatus(ctx context.Context, o client.Object, change func()) error {
	before := o.DeepCopyObject().(client.Object)
	change()
	if equality.Semantic.DeepEqual(before, o) {
		return nil
	}
	patch := client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{})
	if err := k.Client.Status().Patch(ctx, o, patch); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("patch status of %s: %w", o.GetName(), err)
	}
	return nil
}

// Patch writes what change did to the object beside its status, if anything. It says whether the object is there and as changed.
func (k *Kit) Patch(ctx context.Context, o client.Object, change func()) (bool, error) {
	before := o.DeepCopyObject().(client.Object)
	change()
	if equality.Semantic.DeepEqual(before, o) {
		return true, nil
	}
	err := k.Client.Patch(ctx, o, client.MergeFromWithOptions(before, client.MergeFromWithOptimisticLock{}))
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("patch %s: %w", o.GetName(), err)
	}
	return true, nil
}

// SetCondition sets a condition of the object as of its present generation, at the kit's time.
func (k *Kit) SetCondition(o client.Object, s *v1alpha1.Status, kind string, status metav1.ConditionStatus, reason, message string) {
	meta.SetStatusCondition(&s.Conditions, metav1.Condition{
		Type: kind, Status: status, Reason: reason, Message: Shorten(message), ObservedGeneration: o.GetGeneration(),
		LastTransitionTime: metav1.NewTime(k.Clock.Now()),
	})
}

// maxMessage is how long a condition's or event's text may be: events take 1,024 bytes.
const maxMessage = 1000

// Shorten a text to what an event takes.
func Shorten(text string) string {
	if len(text) <= maxMessage {
		return text
	}
	cut := maxMessage
	for cut > 0 && text[cut]&0xc0 == 0x80 { // not within a character
		cut--
	}
	return text[:cut] + "…"
}

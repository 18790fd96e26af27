package snapshotpolicy

import (
	"context"
	"fmt"
	"slices"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/source"

	"github.com/rowan-csi/rowan/pkg/claims"
	"github.com/rowan-csi/rowan/pkg/controller/snapshotusers"
)

// optional kinds, and which of them are installed.
type optional struct {
	reader client.Reader // of a cache that has objects without types, too

	mu     sync.Mutex
	users  []snapshotusers.Kind
	groups schema.GroupVersionKind // of VolumeGroupSnapshots; empty: not installed
}

func (o *optional) installed() ([]snapshotusers.Kind, schema.GroupVersionKind) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.users, o.groups
}

// watchOptional waits for each of the kinds that may be installed.
func (c *Controller) watchOptional(ctx context.Context, m ctrl.Manager, to controller.Controller) {
	for _, u := range snapshotusers.Kinds {
		go c.waitFor(ctx, m, u.GroupVersionKind, func() error {
			c.others.mu.Lock()
			defer c.others.mu.Unlock()
			c.others.users = append(c.others.users, u)
			return nil
		})
	}
	for _, version := range []string{"v1", "v1beta2"} {
		kind := schema.GroupVersionKind{Group: groupGroup, Version: version, Kind: kindGroup}
		go c.waitFor(ctx, m, kind, func() error { return c.haveGroups(m, to, kind) })
	}
}

func (c *Controller) waitFor(ctx context.Context, m ctrl.Manager, kind schema.GroupVersionKind, then func() error) {
	if err := c.WhenInstalled(ctx, m.GetRESTMapper(), kind, then); err != nil {
		ctrl.LoggerFrom(ctx).Error(err, "Could not watch", "kind", kind.Kind)
	}
}

// haveGroups takes the first version that is there: they differ in nothing that is read here.
func (c *Controller) haveGroups(m ctrl.Manager, to controller.Controller, kind schema.GroupVersionKind) error {
	c.others.mu.Lock()
	defer c.others.mu.Unlock()
	if !c.others.groups.Empty() {
		return nil
	}
	o := &unstructured.Unstructured{}
	o.SetGroupVersionKind(kind)
	if err := to.Watch(source.Kind[client.Object](m.GetCache(), o, c.later(c.policiesOfSnapshot))); err != nil {
		return fmt.Errorf("watch VolumeGroupSnapshots: %w", err)
	}
	c.others.groups = kind
	return c.wake(to)
}

// restoresIndex finds claims that are being made from a snapshot: while they are not bound, their snapshot is in use.
func restoresIndex(o client.Object) []string {
	claim := o.(*corev1.PersistentVolumeClaim)
	if claim.Spec.VolumeName == "" && claims.SnapshotOf(claim) != "" {
		return []string{restoring}
	}
	return nil
}

// uses says who needs a snapshot, by the snapshot's namespace and name.
func (ps *pass) uses(ctx context.Context) (map[string][]string, error) {
	uses := map[string][]string{}
	var unbound corev1.PersistentVolumeClaimList
	if err := ps.c.Client.List(ctx, &unbound, client.MatchingFields{fieldRestores: restoring}, noCopies); err != nil {
		return nil, fmt.Errorf("list unbound claims: %w", err)
	}
	for i := range unbound.Items {
		claim := &unbound.Items[i]
		at := claims.SnapshotOf(claim)
		uses[at] = append(uses[at], "PVC "+claim.Namespace+"/"+claim.Name)
	}
	for _, u := range ps.users {
		if err := u.Each(ctx, ps.c.others.reader, func(by, snapshot string) { uses[snapshot] = append(uses[snapshot], by) }); err != nil {
			return nil, err
		}
	}
	for _, users := range uses { // a cache lists in no order
		slices.Sort(users)
	}
	return uses, nil
}

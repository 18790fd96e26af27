package agent

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

// Renew says once that the agent lives, which pools it found that no Pool of its node stands for, and how full the others are. The lease is the agent's own: the only object that
// it makes.
func (a *Agent) Renew(ctx context.Context) error {
	foreign, usage, ferr := a.tellPools(ctx)
	lease := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: v1alpha1.AgentLease(a.cfg.Node), Namespace: a.cfg.Namespace}}
	err := a.reader.Get(ctx, client.ObjectKeyFromObject(lease), lease)
	missing := apierrors.IsNotFound(err)
	if err != nil && !missing {
		return errors.Join(ferr, fmt.Errorf("read lease %s: %w", lease.Name, err))
	}
	old := lease.DeepCopy()
	now, seconds := metav1.NewMicroTime(a.cfg.Clock.Now()), int32(v1alpha1.AgentSilence/time.Second)
	lease.Spec.HolderIdentity, lease.Spec.LeaseDurationSeconds, lease.Spec.RenewTime = &a.cfg.Node, &seconds, &now
	if ferr == nil {
		metav1.SetMetaDataAnnotation(&lease.ObjectMeta, v1alpha1.ForeignPools, strings.Join(foreign, ","))
		metav1.SetMetaDataAnnotation(&lease.ObjectMeta, v1alpha1.PoolUsageAnnotation, usage)
	}
	if missing {
		err = a.client.Create(ctx, lease)
	} else {
		err = a.client.Patch(ctx, lease, client.MergeFrom(old))
	}
	if err != nil {
		err = fmt.Errorf("renew lease %s: %w", lease.Name, err)
	}
	return errors.Join(ferr, err)
}

// tellPools are the UUIDs of pools that are open here and that no Pool of this node stands for, and how full those are that one stands for.
func (a *Agent) tellPools(ctx context.Context) (foreign []string, usage string, err error) {
	open, err := a.engine.Pools(ctx)
	if err != nil {
		return nil, "", local.Translate(err)
	}
	var ps v1alpha1.PoolList
	if err := a.client.List(ctx, &ps); err != nil {
		return nil, "", fmt.Errorf("list this node's pools: %w", err)
	}
	var full []v1alpha1.PoolUsage
	for _, p := range open {
		mine := slices.ContainsFunc(ps.Items, func(o v1alpha1.Pool) bool {
			return o.Status.UUID == p.ID || o.Status.UUID == "" && o.Name == p.Name
		})
		if mine && p.Size > 0 {
			full = append(full, v1alpha1.PoolUsage{Pool: p.Name, Used: p.Used + p.Reserved, Size: p.Size})
		}
		if !mine && p.ID != "" {
			foreign = append(foreign, p.ID)
		}
	}
	slices.Sort(foreign)
	slices.SortFunc(full, func(a, b v1alpha1.PoolUsage) int { return strings.Compare(a.Pool, b.Pool) })
	return foreign, v1alpha1.PoolUsageText(full), nil
}

// KeepNode has the identity and the Node's topology label follow the disks that are here, and takes the taint off it that kept pods away until pool and
// driver serve, if they do: serving says that the driver does. done: the Node is as it should be.
func (a *Agent) KeepNode(ctx context.Context, serving bool) (done bool, err error) {
	id, err := a.Identity(ctx)
	if err != nil {
		return false, err
	}
	n := &corev1.Node{}
	if err := a.client.Get(ctx, client.ObjectKey{Name: a.cfg.Node}, n); err != nil {
		return false, fmt.Errorf("read this node: %w", err)
	}
	if err := a.labelNode(ctx, n, id); err != nil {
		return false, err // the kubelet would refuse the driver
	}
	ours := func(t corev1.Taint) bool { return t.Key == v1alpha1.TaintNotReady }
	if !slices.ContainsFunc(n.Spec.Taints, ours) {
		return true, nil
	}
	var ps v1alpha1.PoolList
	if err := a.client.List(ctx, &ps); err != nil {
		return false, fmt.Errorf("list this node's pools: %w", err)
	}
	if !serving || !slices.ContainsFunc(ps.Items, func(p v1alpha1.Pool) bool { return is(&p, v1alpha1.Ready) }) {
		return false, nil
	}
	old := n.DeepCopy()
	n.Spec.Taints = slices.DeleteFunc(n.Spec.Taints, ours)
	// The whole list is written: not over a taint that came meanwhile.
	if err := a.client.Patch(ctx, n, client.MergeFromWithOptions(old, client.MergeFromWithOptimisticLock{})); err != nil {
		return false, fmt.Errorf("take taint %s off the node: %w", v1alpha1.TaintNotReady, err)
	}
	return true, nil
}

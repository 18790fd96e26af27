package framework

import (
	"context"
	"errors"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// OurPod is the pod of a component of Rowan's on a node.
func (c *Cluster) OurPod(ctx context.Context, component, node string) (*corev1.Pod, error) {
	var pods corev1.PodList
	err := c.List(ctx, &pods, client.InNamespace(c.Namespace), client.MatchingLabels{"app.kubernetes.io/component": component})
	if err != nil {
		return nil, fmt.Errorf("list pods of %s: %w", component, err)
	}
	i := slices.IndexFunc(pods.Items, func(p corev1.Pod) bool { return p.Spec.NodeName == node && p.DeletionTimestamp == nil })
	if i < 0 {
		return nil, fmt.Errorf("node %s has no pod of %s among %d", node, component, len(pods.Items))
	}
	return &pods.Items[i], nil
}

// Rowanctl asks a node's engine.
func (c *Cluster) Rowanctl(ctx context.Context, node string, words ...string) (string, error) {
	p, err := c.OurPod(ctx, "engine", node)
	if err != nil {
		return "", err
	}
	return c.exec(ctx, p, append([]string{"rowanctl", "--socket=/run/rowan/engine.sock"}, words...)...)
}

// PoolSet makes a pool of the flow's own on one node, and waits until it serves. When the test ends, the pool is given up.
func (f *Flow) PoolSet(name, node, size string, overcommitPercent int32) (*rowanv1alpha1.PoolSet, *rowanv1alpha1.Pool) {
	f.Helper()
	path := "/var/lib/rowan/" + f.Namespace + "-" + name
	set := &rowanv1alpha1.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: f.Class(name)}, Spec: rowanv1alpha1.PoolSetSpec{
		NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: node}},
		Template: rowanv1alpha1.PoolTemplate{OvercommitPercent: overcommitPercent, Members: []rowanv1alpha1.Member{
			{Directory: &rowanv1alpha1.DirectoryMember{Path: path, Size: ptr.To(resource.MustParse(size))}},
		}},
	}}
	must(f, f.Create(f.Context(), set))
	pool := &rowanv1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: set.Name + "-" + node}}
	f.OnEnd(set)
	f.OnEndDo(func(ctx context.Context) error { return f.GiveUp(ctx, pool) })
	f.OnEndDo(func(ctx context.Context) error {
		if f.NodeExec == "" {
			return nil // what is left is the folder of an empty pool
		}
		_, err := f.OnNode(ctx, node, "rm", "-rf", path)
		return err
	})
	f.PoolServes(pool)
	return set, pool
}

// PoolServes waits until a pool is ready.
func (f *Flow) PoolServes(pool *rowanv1alpha1.Pool) {
	f.Helper()
	f.PoolSays(pool, rowanv1alpha1.Ready, metav1.ConditionTrue)
}

// PoolSays waits until a condition of a pool is so.
func (f *Flow) PoolSays(pool *rowanv1alpha1.Pool, kind string, want metav1.ConditionStatus) {
	f.Helper()
	Until(f, f.Cluster, pool, Wait, func(p *rowanv1alpha1.Pool) error {
		if !meta.IsStatusConditionPresentAndEqual(p.Status.Conditions, kind, want) {
			return fmt.Errorf("%s is not %s: conditions %v", kind, want, p.Status.Conditions)
		}
		return nil
	})
}

// GiveUp gives a pool up with both keys, as an administrator does, and waits until its object is gone.
func (f *Flow) GiveUp(ctx context.Context, pool *rowanv1alpha1.Pool) error {
	there := &rowanv1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: pool.Name}}
	err := f.Patch(ctx, there, client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"desiredState":"Absent"}}`)))
	if err == nil {
		err = f.Delete(ctx, there)
	}
	if client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("give up pool %s: %w", pool.Name, err)
	}
	uid := there.UID
	if err := f.until(ctx, there, func() error {
		if there.UID != uid {
			return errGone // and another was made
		}
		return errThere
	}); err != nil && !errors.Is(err, errGone) {
		return fmt.Errorf("give up pool %s: %w: %v", pool.Name, err, there.Status.Conditions)
	}
	return nil
}

// PoolOn is the pool of the chart's PoolSet on a node.
func (f *Flow) PoolOn(node string) *rowanv1alpha1.Pool {
	f.Helper()
	var pools rowanv1alpha1.PoolList
	must(f, f.List(f.Context(), &pools))
	for i := range pools.Items {
		if p := &pools.Items[i]; p.Spec.NodeName == node && p.Spec.PoolSet == "default" {
			return p
		}
	}
	f.Fatalf("node %s has none of %d pools", node, len(pools.Items))
	return nil
}

// AllPoolsServe waits until every node of a PoolSet has a pool that serves, and pods of its volumes are sent there.
func (f *Flow) AllPoolsServe(ctx context.Context, name string) error {
	set := &rowanv1alpha1.PoolSet{ObjectMeta: metav1.ObjectMeta{Name: name}}
	err := f.until(ctx, set, func() error {
		if !meta.IsStatusConditionTrue(set.Status.Conditions, rowanv1alpha1.Ready) {
			return fmt.Errorf("conditions %v", set.Status.Conditions)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait for pools of set %s: %w", name, err)
	}
	var pools rowanv1alpha1.PoolList
	if err := f.List(ctx, &pools); err != nil {
		return fmt.Errorf("list pools: %w", err)
	}
	for _, p := range pools.Items {
		if p.Spec.PoolSet != name {
			continue
		}
		if err := f.labelled(ctx, p.Spec.NodeName, p.Status.Identity); err != nil {
			return err
		}
	}
	return nil
}

// labelled waits until a Node's topology label is an identity.
func (c *Cluster) labelled(ctx context.Context, node, identity string) error {
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}
	err := c.until(ctx, n, func() error {
		if have := n.Labels[rowanv1alpha1.TopologyKey]; have != identity {
			return fmt.Errorf("its label is %q", have)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("wait until node %s has the topology of %s: %w", node, identity, err)
	}
	return nil
}

// Topology waits until a Node's topology label is an identity, by which pods are sent there.
func (f *Flow) Topology(node, identity string) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.Context(), Wait)
	defer cancel()
	must(f, f.labelled(ctx, node, identity))
}

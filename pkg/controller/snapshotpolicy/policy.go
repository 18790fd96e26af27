package snapshotpolicy

import (
	"context"
	"fmt"
	"slices"
	"strings"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller/controllerutil"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/retention"
)

// The kinds of policies.
const (
	kindPolicy  = "SnapshotPolicy"
	kindCluster = "ClusterSnapshotPolicy"
)

// policy is one of either kind.
type policy struct {
	obj        client.Object
	kind       string
	spec       *retention.Policy
	namespaces *retention.NamespaceSelector // of a ClusterSnapshotPolicy; nil: all
	status     *v1alpha1.SnapshotPolicyStatus
}

func policyOf(o client.Object) *policy {
	switch o := o.(type) {
	case *v1alpha1.SnapshotPolicy:
		return &policy{obj: o, kind: kindPolicy, spec: &o.Spec, status: &o.Status}
	case *v1alpha1.ClusterSnapshotPolicy:
		return &policy{obj: o, kind: kindCluster, spec: &o.Spec.Policy, namespaces: o.Spec.NamespaceSelector, status: &o.Status}
	}
	panic(fmt.Sprintf("%T is no snapshot policy", o))
}

func newPolicy(key client.ObjectKey) client.Object {
	if key.Namespace == "" {
		return &v1alpha1.ClusterSnapshotPolicy{}
	}
	return &v1alpha1.SnapshotPolicy{}
}

// load a policy from the cache; nil: there is none.
func (c *Controller) load(ctx context.Context, key client.ObjectKey) (*policy, error) {
	o := newPolicy(key)
	if err := c.Client.Get(ctx, key, o); err != nil {
		if apierrors.IsNotFound(err) {
			return nil, nil
		}
		return nil, fmt.Errorf("get policy %s: %w", key, err)
	}
	return policyOf(o), nil
}

func (p *policy) uid() string             { return string(p.obj.GetUID()) }
func (p *policy) key() client.ObjectKey   { return client.ObjectKeyFromObject(p.obj) }
func (p *policy) cluster() bool           { return p.kind == kindCluster }
func (p *policy) deletes() bool           { return p.spec.DeletionPolicy == retention.DeletionDelete }
func (p *policy) title() string           { return p.kind + " " + p.obj.GetName() }
func (p *policy) group() *retention.Group { return p.spec.Template.Group }
func (p *policy) grouped() bool           { return p.spec.Template.Group != nil }
func (p *policy) labelValues() []string {
	return []string{p.kind, p.obj.GetNamespace(), p.obj.GetName()}
}
func (p *policy) created() metav1.Time { return p.obj.GetCreationTimestamp() }
func (p *policy) annotation() string {
	return p.kind + "/" + p.obj.GetNamespace() + "/" + p.obj.GetName()
}
func (p *policy) adopts() bool { return p.spec.Adopt == retention.AdoptByName }
func (p *policy) after() bool {
	return p.spec.Retention != nil && p.spec.Retention.AfterSourceDeleted != nil
}
func (p *policy) presses() bool {
	return p.spec.Retention != nil && p.spec.Retention.PoolPressure != nil
}
func (p *policy) prunesNow() bool {
	return !p.spec.DryRun && (!p.spec.Suspend || p.spec.PruneWhileSuspended)
}
func (p *policy) takes() bool { return !p.spec.DryRun && !p.spec.Suspend }

// parseAnnotation reads annotation.
func parseAnnotation(text string) (client.ObjectKey, bool) {
	kind, rest, _ := strings.Cut(text, "/")
	namespace, name, ok := strings.Cut(rest, "/")
	right := ok && name != "" && (kind == kindPolicy && namespace != "" || kind == kindCluster && namespace == "")
	return client.ObjectKey{Namespace: namespace, Name: name}, right
}

// ref is how a PVC's annotation names the policy.
func (p *policy) ref() string {
	if p.cluster() {
		return clusterRef + p.obj.GetName()
	}
	return p.obj.GetName()
}

// chooses says whether a ClusterSnapshotPolicy is for that namespace.
func (p *policy) chooses(ns *metav1.PartialObjectMetadata) bool {
	s := p.namespaces
	if s == nil {
		return true
	}
	if len(s.Names) > 0 && !slices.Contains(s.Names, ns.Name) || slices.Contains(s.ExcludeNames, ns.Name) {
		return false
	}
	return containsAll(ns.Labels, s.MatchLabels)
}

func containsAll(labels, wanted map[string]string) bool {
	for k, v := range wanted {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// keepFinalizer has the policy wait for its snapshots' deletion if it says Delete, and only then. It says whether the policy is there.
func (c *Controller) keepFinalizer(ctx context.Context, p *policy) (bool, error) {
	there, err := c.Patch(ctx, p.obj, func() {
		if p.deletes() {
			controllerutil.AddFinalizer(p.obj, v1alpha1.PolicyFinalizer)
		} else {
			controllerutil.RemoveFinalizer(p.obj, v1alpha1.PolicyFinalizer)
		}
	})
	if err != nil {
		return false, fmt.Errorf("keep the finalizer: %w", err)
	}
	return there, nil
}

func (c *Controller) patchStatus(ctx context.Context, p *policy, change func(s *v1alpha1.SnapshotPolicyStatus)) error {
	return c.PatchStatus(ctx, p.obj, func() {
		p.status.ObservedGeneration = p.obj.GetGeneration()
		change(p.status)
	})
}

// ready sets the condition Ready.
func (c *Controller) ready(p *policy, ok bool, reason, message string) {
	status := metav1.ConditionFalse
	if ok {
		status = metav1.ConditionTrue
	}
	c.SetCondition(p.obj, &p.status.Status, v1alpha1.Ready, status, reason, message)
}

// notice sets a condition that is there only while it is True: while it has a message.
func (c *Controller) notice(p *policy, kind, reason, message string) {
	if message == "" {
		meta.RemoveStatusCondition(&p.status.Conditions, kind)
		return
	}
	c.SetCondition(p.obj, &p.status.Status, kind, metav1.ConditionTrue, reason, message)
}

package e2e

import (
	"fmt"
	"testing"

	authenticationv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/test/e2e/framework"
)

// handle is the LocalVolume of a bound claim.
func handle(t *testing.T, f *framework.Flow, pvc *corev1.PersistentVolumeClaim) *rowanv1alpha1.LocalVolume {
	t.Helper()
	v := &rowanv1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: f.Bound(pvc).Spec.CSI.VolumeHandle}}
	if err := f.Get(t.Context(), framework.Key(v), v); err != nil {
		t.Fatal(err)
	}
	return v
}

// kubectl delete of the LocalVolume of a claim in use frees nothing: the pod goes on, the object says how to go on, and deleting the claim removes both.
func TestDeletionTakesTwoKeys(t *testing.T) {
	f := flow(t)
	data := f.Claim(framework.Claim{Name: "data"})
	p := f.Pod(framework.Pod{Name: "p", Claims: []string{"data"}})
	f.WriteFiles(p, "/data/data/kept")
	want := f.HashFiles(p, "/data/data/kept")
	v := handle(t, f, data)
	if err := f.Delete(t.Context(), v); err != nil {
		t.Fatal(err)
	}
	framework.Until(t, f.Cluster, v, framework.Wait, func(v *rowanv1alpha1.LocalVolume) error {
		if !meta.IsStatusConditionTrue(v.Status.Conditions, rowanv1alpha1.DeletionNotConfirmed) {
			return fmt.Errorf("conditions %v", v.Status.Conditions)
		}
		return nil
	})
	f.Run(p, "sync; echo more > /data/data/more; sync")
	if got := f.HashFiles(p, "/data/data/kept"); got != want {
		t.Errorf("files of hash %s, want %s", got, want)
	}
	f.Remove(p)
	q := f.Pod(framework.Pod{Name: "q", Claims: []string{"data"}})
	if got := f.HashFiles(q, "/data/data/kept"); got != want {
		t.Errorf("after another start: files of hash %s, want %s", got, want)
	}
	f.Remove(q)
	f.Remove(data)
	framework.Gone(t, f.Cluster, v)
}

// A node's agent may write the status of its own node's objects, and nothing else.
func TestAgentRights(t *testing.T) {
	f := flow(t)
	data := f.Claim(framework.Claim{Name: "data"})
	p := f.Pod(framework.Pod{Name: "p", Claims: []string{"data"}})
	v := handle(t, f, data)
	own, other := agentClient(t, f, p.Spec.NodeName), agentClient(t, f, otherNode(t, f, p.Spec.NodeName))

	status := func(c client.Client) error {
		o := v.DeepCopy()
		before := o.DeepCopy()
		o.Status.ObservedGeneration++
		return c.Status().Patch(t.Context(), o, client.MergeFrom(before))
	}
	if err := status(own); err != nil {
		t.Errorf("the node's own agent cannot write its status: %v", err)
	}
	for what, err := range map[string]error{
		"another node's status": status(other),
		"its spec": func() error {
			o := v.DeepCopy()
			o.Spec.DesiredState = rowanv1alpha1.Absent
			return own.Patch(t.Context(), o, client.MergeFrom(v.DeepCopy()))
		}(),
		"its finalizers": func() error {
			o := v.DeepCopy()
			o.Finalizers = nil
			return own.Patch(t.Context(), o, client.MergeFrom(v.DeepCopy()))
		}(),
		"its existence": own.Delete(t.Context(), v.DeepCopy()),
		"a new object":  own.Create(t.Context(), &rowanv1alpha1.LocalVolume{ObjectMeta: metav1.ObjectMeta{Name: "x"}, Spec: v.Spec}),
		"secrets":       own.List(t.Context(), &corev1.SecretList{}),
	} {
		if !apierrors.IsForbidden(err) && !apierrors.IsInvalid(err) {
			t.Errorf("an agent that touches %s: %v, want it to be forbidden", what, err)
		}
	}
}

// agentClient speaks with the rights of a node's agent: a token bound to its pod.
func agentClient(t *testing.T, f *framework.Flow, node string) client.Client {
	t.Helper()
	p, err := f.OurPod(t.Context(), "node", node)
	if err != nil {
		t.Fatal(err)
	}
	token := &authenticationv1.TokenRequest{Spec: authenticationv1.TokenRequestSpec{
		BoundObjectRef: &authenticationv1.BoundObjectReference{APIVersion: "v1", Kind: "Pod", Name: p.Name, UID: p.UID},
	}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Name: p.Spec.ServiceAccountName, Namespace: p.Namespace}}
	if err := f.SubResource("token").Create(t.Context(), account, token); err != nil {
		t.Fatal(err)
	}
	config := rest.AnonymousClientConfig(f.Config)
	config.BearerToken = token.Status.Token
	c, err := client.New(config, client.Options{Scheme: f.Scheme()})
	if err != nil {
		t.Fatal(err)
	}
	return c
}

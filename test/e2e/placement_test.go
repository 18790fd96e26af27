package e2e

import (
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/test/e2e/framework"
)

const selectedNode = "volume.kubernetes.io/selected-node"

// nodes are those that pods can be scheduled to.
func nodes(t *testing.T, f *framework.Flow) (names []string) {
	t.Helper()
	var list corev1.NodeList
	if err := f.List(t.Context(), &list); err != nil {
		t.Fatal(err)
	}
	for _, n := range list.Items {
		if !n.Spec.Unschedulable {
			names = append(names, n.Name)
		}
	}
	return names
}

// otherNode is a node that is not the named one.
func otherNode(t *testing.T, f *framework.Flow, name string) string {
	t.Helper()
	for _, other := range nodes(t, f) {
		if other != name {
			return other
		}
	}
	t.Skip("needs a second node")
	return ""
}

// snapshotted makes a claim with files, its snapshot, and tells which node they are on and the files' hash.
func snapshotted(f *framework.Flow) (node, hash string) {
	f.Helper()
	f.Claim(framework.Claim{Name: "data"})
	p := f.Pod(framework.Pod{Name: "writer", Claims: []string{"data"}})
	f.WriteFiles(p, "/data/data/kept")
	hash = f.HashFiles(p, "/data/data/kept")
	f.Snapshot("s", "data")
	f.Remove(p)
	return p.Spec.NodeName, hash
}

// A pod with a restored claim and a new one always runs: the restored claim is bound where its snapshot is before the pod is placed, and the other one
// follows. Both waiting for the pod would choose apart.
func TestRestoredAndNewInOnePod(t *testing.T) {
	f := flow(t)
	node, want := snapshotted(f)
	for i := range 50 {
		t.Run(fmt.Sprint(i), func(t *testing.T) {
			t.Parallel()
			f := f.In(t)
			restored, fresh := fmt.Sprintf("restored-%d", i), fmt.Sprintf("new-%d", i)
			a, b := f.Claim(framework.Claim{Name: fresh}), f.Claim(framework.Claim{Name: restored, Snapshot: "s"})
			p := f.Pod(framework.Pod{Name: fmt.Sprintf("pod-%d", i), Claims: []string{fresh, restored}})
			if p.Spec.NodeName != node {
				t.Errorf("the pod runs on node %s, the snapshot is on %s", p.Spec.NodeName, node)
			}
			if got := f.HashFiles(p, "/data/"+restored+"/kept"); got != want {
				t.Errorf("files of hash %s, want %s", got, want)
			}
			f.Remove(p)
			f.Remove(a)
			f.Remove(b)
		})
	}
}

// The scheduler drew another node for the restore's pod: the volume is made where its snapshot is, and the pod follows.
func TestRestoreDrawnElsewhere(t *testing.T) {
	f := flow(t)
	node, want := snapshotted(f)
	pvc := framework.Claim{Name: "restored", Snapshot: "s"}.Object(f.Namespace)
	pvc.Annotations = map[string]string{selectedNode: otherNode(t, f, node)}
	if err := f.Create(t.Context(), pvc); err != nil {
		t.Fatal(err)
	}
	p := f.Pod(framework.Pod{Name: "reader", Claims: []string{"restored"}})
	if p.Spec.NodeName != node {
		t.Errorf("the pod runs on node %s, the snapshot is on %s", p.Spec.NodeName, node)
	}
	if got := f.HashFiles(p, "/data/restored/kept"); got != want {
		t.Errorf("files of hash %s, want %s", got, want)
	}
}

// A pod that may not run where the snapshot is: the claim is bound there all the same, the pod waits with the scheduler's reason, and an event on the
// claim names the node.
func TestRestoreWithAntiAffinity(t *testing.T) {
	f := flow(t)
	node, _ := snapshotted(f)
	otherNode(t, f, node)
	pvc := f.Claim(framework.Claim{Name: "restored", Snapshot: "s"})
	p := f.AskPod(framework.Pod{Name: "reader", Claims: []string{"restored"}, Change: func(s *corev1.PodSpec) {
		s.Affinity = &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &corev1.NodeSelector{
			NodeSelectorTerms: []corev1.NodeSelectorTerm{{MatchExpressions: []corev1.NodeSelectorRequirement{
				{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpNotIn, Values: []string{node}},
			}}},
		}}}
	}})
	pv := f.Bound(pvc)
	if terms := fmt.Sprint(pv.Spec.NodeAffinity); !strings.Contains(terms, node) {
		t.Errorf("the volume is at %s, the snapshot on node %s", terms, node)
	}
	framework.Until(t, f.Cluster, p, framework.Wait, func(p *corev1.Pod) error {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse && strings.Contains(c.Message, "affinity") {
				return nil
			}
		}
		return fmt.Errorf("phase %s, conditions %v", p.Status.Phase, p.Status.Conditions)
	})
	framework.UntilEvent(t, f.Cluster, pvc, node)
}

// allowedTopologies that exclude the snapshot's node: the claim's event says so and names it. When the claim is given up, the snapshot can go.
func TestRestoreExcluded(t *testing.T) {
	f := flow(t)
	node, _ := snapshotted(f)
	other := otherNode(t, f, node)
	c := f.StorageClass("elsewhere", nil)
	if err := f.Delete(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	c.ObjectMeta = metav1.ObjectMeta{Name: c.Name}
	c.AllowedTopologies = []corev1.TopologySelectorTerm{{MatchLabelExpressions: []corev1.TopologySelectorLabelRequirement{
		{Key: rowanv1alpha1.TopologyKey, Values: []string{other}},
	}}}
	if err := f.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	pvc := f.Claim(framework.Claim{Name: "restored", Class: c.Name, Snapshot: "s"})
	p := f.AskPod(framework.Pod{Name: "reader", Claims: []string{"restored"}})
	framework.UntilEvent(t, f.Cluster, pvc, "is on node "+node)
	f.Remove(p)
	f.Remove(pvc)
	f.RemoveSnapshot("s")
}

// Three replicas on three nodes, each with its own disk; a fourth begins from a snapshot of the first, as database operators add replicas.
func TestReplicaFromSnapshot(t *testing.T) {
	f := flow(t)
	labels := map[string]string{"app": "pg"}
	spread := func(s *corev1.PodSpec) {
		s.Affinity = &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.WeightedPodAffinityTerm{
			{Weight: 100, PodAffinityTerm: corev1.PodAffinityTerm{TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: labels}}},
		}}}
	}
	var first *corev1.Pod
	for i := range 3 {
		name := fmt.Sprintf("pg-%d", i)
		f.Claim(framework.Claim{Name: name})
		p := f.Pod(framework.Pod{Name: name, Claims: []string{name}, Labels: labels, Change: spread})
		if first == nil {
			first = p
		}
	}
	f.WriteFiles(first, "/data/pg-0/kept")
	want := f.HashFiles(first, "/data/pg-0/kept")
	f.Snapshot("base", "pg-0")
	f.Claim(framework.Claim{Name: "pg-3", Snapshot: "base"})
	f.Claim(framework.Claim{Name: "wal-3"})
	p := f.Pod(framework.Pod{Name: "pg-3", Claims: []string{"pg-3", "wal-3"}, Labels: labels, Change: spread})
	if got := f.HashFiles(p, "/data/pg-3/kept"); got != want {
		t.Errorf("the new replica has files of hash %s, want %s", got, want)
	}
}

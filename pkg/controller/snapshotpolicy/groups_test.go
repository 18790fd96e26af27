package snapshotpolicy

import (
	"math/rand/v2"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/retention"
)

// A cache lists claims in no order. Were a group's claims in that order, its trouble would name another of them at each pass, and each pass would write
// a status.
func TestGroupsAreInOrder(t *testing.T) {
	p := policyOf(&v1alpha1.SnapshotPolicy{Spec: retention.Policy{Template: retention.Template{Group: &retention.Group{ByLabel: "app"}}}})
	claim := func(name, volume string) *claimEntry {
		return &claimEntry{&corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, Labels: map[string]string{"app": "db"}},
			Spec: corev1.PersistentVolumeClaimSpec{VolumeName: volume}}, true}
	}
	for range 20 {
		list := []*claimEntry{claim("a", "pv-a"), claim("b", ""), claim("c", "pv-c"), claim("d", ""), claim("e", "pv-e")}
		rand.Shuffle(len(list), func(i, j int) { list[i], list[j] = list[j], list[i] })
		ch := &chosen{sources: map[string]*src{}, there: map[string]bool{}, claims: map[string][]*claimEntry{"ns": list}}
		(&pass{p: p}).groups(ch)
		g := ch.sources[groupKey("ns", "db")]
		var names []string
		for _, c := range g.claims {
			names = append(names, c.Name)
		}
		if got := strings.Join(names, " "); got != "a b c d e" {
			t.Errorf("claims %s", got)
		}
		if g.trouble == nil || !strings.Contains(g.trouble.message, "PVC d,") {
			t.Errorf("trouble %v; want the last claim that is not bound", g.trouble)
		}
	}
}

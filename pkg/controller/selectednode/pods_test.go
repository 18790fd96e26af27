package selectednode

import (
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

func pod(name string, claims ...string) *corev1.Pod {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: "uid"}}
	for _, c := range claims {
		v := corev1.Volume{Name: c, VolumeSource: corev1.VolumeSource{PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: c}}}
		if own, ok := strings.CutPrefix(c, name+"-"); ok {
			v = corev1.Volume{Name: own, VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{}}}
		}
		p.Spec.Volumes = append(p.Spec.Volumes, v)
	}
	return p
}

func TestPodsThatCannotRun(t *testing.T) {
	objects := slices.Concat(volume("live-a", "a"), volume("live-b", "b"),
		snapshot("cut-a", "a", v1alpha1.DriverName), snapshot("cut-b", "b", v1alpha1.DriverName))
	objects = append(objects, claim("new", "rowan", nil), claim("from-a", "rowan", ofSnapshot("cut-a")), claim("from-b", "rowan", ofSnapshot("cut-b")),
		claim("p-own", "rowan", ofSnapshot("cut-b")), claim("theirs", "other", ofSnapshot("cut-b")))
	for _, c := range []struct {
		claims []string
		want   []string // who is told
	}{
		{claims: []string{"new", "from-a"}},
		{claims: []string{"live-a", "from-a", "new", "not-there", "theirs"}},
		{claims: []string{"from-a", "from-b"}, want: []string{"Pod/p", "PersistentVolumeClaim/from-a", "PersistentVolumeClaim/from-b"}},
		{claims: []string{"from-a", "p-own"}, want: []string{"Pod/p", "PersistentVolumeClaim/from-a", "PersistentVolumeClaim/p-own"}},
		{claims: []string{"live-b", "from-a"}, want: []string{"Pod/p", "PersistentVolumeClaim/from-a"}},
		{claims: []string{"live-b", "live-a"}, want: []string{"Pod/p"}},
	} {
		t.Run(strings.Join(c.claims, " and "), func(t *testing.T) {
			s := start(t, append(slices.Clone(objects), pod("p", c.claims...))...)
			for range 3 { // told once
				s.Settle(s.pods, "ns", "p")
			}
			var told []string
			for _, e := range s.TakeEvents() {
				who, text, _ := strings.Cut(e, " ")
				told = append(told, who)
				for _, part := range []string{"SourcesOnDifferentNodes: no node can run pod p: node a has ", "; node b has "} {
					if !strings.Contains(text, part) {
						t.Errorf("%q does not say %q", text, part)
					}
				}
			}
			if !slices.Equal(told, c.want) {
				t.Errorf("%q are told, not %q", told, c.want)
			}
		})
	}
}

func TestPodWithANodeIsLeftAlone(t *testing.T) {
	p := pod("p", "live-a", "live-b")
	p.Spec.NodeName = "a"
	s := start(t, append(append(volume("live-a", "a"), volume("live-b", "b")...), p)...)
	s.Settle(s.pods, "ns", "p")
	if events := s.TakeEvents(); len(events) > 0 {
		t.Error(events)
	}
	if got := s.pods.podsOfClaim(t.Context(), volume("live-a", "a")[0]); len(got) != 1 || got[0].Name != "p" {
		t.Error(got)
	}
}

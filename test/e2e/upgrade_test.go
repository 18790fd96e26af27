package e2e

import (
	"flag"
	"fmt"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/test/e2e/framework"
)

var chart = flag.String("chart", "../../charts/rowan", "the chart that Rowan was installed from")

// writers are one pod with a writer on every node.
func writers(t *testing.T, f *framework.Flow) (pods []*corev1.Pod) {
	t.Helper()
	for i, node := range nodes(t, f) {
		name := fmt.Sprintf("writer-%d", i)
		f.Claim(framework.Claim{Name: name, Block: true})
		p := f.Pod(framework.Pod{Name: name, Blocks: []string{name}, Node: node})
		f.StartWriter(p, name)
		pods = append(pods, p)
	}
	return pods
}

func goOn(f *framework.Flow, writers []*corev1.Pod) {
	f.Helper()
	for _, p := range writers {
		f.WriterGoesOn(p)
	}
}

// next is the other tag of an image, which names the same programs.
func next(tag string) string {
	const suffix = "-next"
	if is, had := strings.CutSuffix(tag, suffix); had {
		return is
	}
	return tag + suffix
}

// retag gives every image of our pods its other tag on every node, and is the chart's values for those.
func retag(t *testing.T, f *framework.Flow) (values []string) {
	t.Helper()
	value := map[string]string{"csi-provisioner": "sidecars.provisioner.", "csi-snapshotter": "sidecars.snapshotter.", "csi-resizer": "sidecars.resizer.", "rowan": ""}
	seen := map[string]bool{}
	for _, p := range ours(t, f) {
		for _, c := range p.Spec.Containers {
			if seen[c.Image] {
				continue
			}
			seen[c.Image] = true
			repository, tag, _ := strings.Cut(c.Image, ":")
			name := repository[strings.LastIndexByte(repository, '/')+1:]
			prefix, known := value[name]
			if !known {
				t.Fatalf("image %s of pod %s is none that the chart has a value for", c.Image, p.Name)
			}
			values = append(values, "--set", prefix+"image.tag="+next(tag))
			if strings.Count(repository, "/") == 1 {
				repository = "docker.io/" + repository // as containerd calls it
			}
			for _, node := range nodes(t, f) {
				if _, err := f.OnNode(t.Context(), node, "ctr", "-n", "k8s.io", "images", "tag", "--force", repository+":"+tag, repository+":"+next(tag)); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	return values
}

// ours are our pods that run for good: what a hook left, as the refusal of an uninstallation, is none.
func ours(t *testing.T, f *framework.Flow) []corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	if err := f.List(t.Context(), &pods, client.InNamespace(f.Options.Namespace)); err != nil {
		t.Fatal(err)
	}
	return slices.DeleteFunc(pods.Items, func(p corev1.Pod) bool {
		return p.Status.Phase == corev1.PodFailed || p.Status.Phase == corev1.PodSucceeded
	})
}

// An upgrade that changes every image, with keepers and engines replaced as the manual says, under writers on all nodes: none sees an error or a wrong byte.
func TestDisruptUpgrade(t *testing.T) {
	f := disturb(t)
	_, p, want := written(f)
	w := writers(t, f)
	count := len(ours(t, f))
	before := map[string]bool{}
	for _, p := range ours(t, f) {
		for _, c := range p.Spec.Containers {
			before[c.Image] = true
		}
	}
	args := []string{"helm", "upgrade", "rowan", *chart, "--namespace", f.Options.Namespace, "--reset-then-reuse-values", "--wait", "--timeout", "5m"}
	f.OnMachine(append(args, retag(t, f)...)...)
	goOn(f, w)
	for _, node := range nodes(t, f) {
		for _, component := range []string{"keeper", "engine"} {
			old, err := f.OurPod(t.Context(), component, node)
			if err != nil {
				t.Fatal(err)
			}
			f.Remove(old)
			f.OurPodsReady(count)
			goOn(f, w)
		}
	}
	for _, p := range ours(t, f) {
		for _, c := range p.Spec.Containers {
			if before[c.Image] && p.DeletionTimestamp == nil {
				t.Errorf("pod %s still runs image %s", p.Name, c.Image)
			}
		}
	}
	f.Snapshot("s", "data")
	f.Claim(framework.Claim{Name: "restored", Snapshot: "s"})
	r := f.Pod(framework.Pod{Name: "r", Claims: []string{"restored"}})
	if got := f.HashFiles(r, "/data/restored/kept"); got != want {
		t.Errorf("restored by the new release: files of hash %s, want %s", got, want)
	}
	for _, p := range w {
		f.StopWriter(p)
	}
	f.Remove(p)
	again(t, f, "q", want)
}

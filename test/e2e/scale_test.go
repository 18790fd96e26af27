package e2e

import (
	"context"
	"flag"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/test/e2e/framework"
)

var (
	scale  = flag.Bool("scale", false, "run the tests of times and sizes, which need the cluster for themselves")
	claims = flag.Int("claims", 200, "how many claims the test of sizes makes; its bar of time is for 200, and less for fewer")
)

// figure prints a measurement as `name value unit (bar …)`; one above its bar is the test's failure.
func figure(t *testing.T, name string, value, bar float64, unit string) {
	t.Helper()
	fmt.Printf("%s %.3g %s (bar %g)\n", name, value, unit, bar)
	if value > bar {
		t.Errorf("%s is %.3g %s, over its bar of %g", name, value, unit, bar)
	}
}

func quantile(d []time.Duration, q float64) float64 {
	d = slices.Sorted(slices.Values(d))
	return d[min(int(float64(len(d))*q), len(d)-1)].Seconds()
}

func scaleFlow(t *testing.T) *framework.Flow {
	t.Helper()
	c := cluster(t)
	if !*scale {
		t.Skip("needs the cluster for itself: make e2e-scale")
	}
	return c.Undisturbed(t)
}

// Snapshots one at a time, and 50 at once: from VolumeSnapshot to ready, and the part of it that is the driver's.
func TestScaleSnapshots(t *testing.T) {
	f := scaleFlow(t)
	f.Claim(framework.Claim{Name: "data"})
	p := f.Pod(framework.Pod{Name: "writer", Claims: []string{"data"}})
	f.WriteFiles(p, "/data/data/kept")
	cuts := watchCuts(t, f)
	var alone []time.Duration
	for i := range 20 {
		_, took := f.Snapshot(fmt.Sprintf("one-%d", i), "data")
		alone = append(alone, took)
	}
	figure(t, "snapshot-ready-p95", quantile(alone, 0.95), 1, "s")
	begun := time.Now()
	var wg sync.WaitGroup
	for i := range 50 {
		wg.Go(func() { f.Snapshot(fmt.Sprintf("many-%d", i), "data") })
	}
	wg.Wait()
	figure(t, "snapshots-50-ready", time.Since(begun).Seconds(), 5, "s")
	took := cuts()
	if len(took) != 70 {
		t.Fatalf("%d cuts were seen, want 70", len(took))
	}
	figure(t, "create-snapshot-p95", quantile(took, 0.95), 0.25, "s")
}

// watchCuts follows LocalSnapshots: how long each took from its object to its cut. The function returned ends it.
func watchCuts(t *testing.T, f *framework.Flow) func() []time.Duration {
	ctx, cancel := context.WithCancel(t.Context())
	w, err := f.Watch(ctx, &rowanv1alpha1.LocalSnapshotList{})
	if err != nil {
		t.Fatal(err)
	}
	var took []time.Duration
	done := make(chan struct{})
	go func() {
		defer close(done)
		asked, cut := map[string]time.Time{}, map[string]bool{}
		for e := range w.ResultChan() {
			s, ok := e.Object.(*rowanv1alpha1.LocalSnapshot)
			if !ok {
				continue
			}
			if _, seen := asked[s.Name]; !seen {
				asked[s.Name] = time.Now()
			}
			if s.Status.Cut != nil && !cut[s.Name] {
				cut[s.Name] = true
				took = append(took, time.Since(asked[s.Name]))
			}
		}
	}()
	return func() []time.Duration {
		cancel()
		<-done
		return took
	}
}

// A pod on a restored claim against one without any.
func TestScaleRestore(t *testing.T) {
	f := scaleFlow(t)
	node, _ := snapshotted(f)
	runs := func(name string, q framework.Pod) float64 {
		begun := time.Now()
		q.Name = name
		p := f.Pod(q)
		took := time.Since(begun).Seconds()
		f.Remove(p)
		return took
	}
	var plain, here, elsewhere []float64
	for i := range 5 {
		plain = append(plain, runs(fmt.Sprintf("plain-%d", i), framework.Pod{Node: node}))
		name := fmt.Sprintf("here-%d", i)
		f.Claim(framework.Claim{Name: name, Snapshot: "s"})
		here = append(here, runs(name, framework.Pod{Claims: []string{name}}))
		name = fmt.Sprintf("elsewhere-%d", i)
		pvc := framework.Claim{Name: name, Snapshot: "s"}.Object(f.Namespace)
		pvc.Annotations = map[string]string{selectedNode: otherNode(t, f, node)}
		if err := f.Create(t.Context(), pvc); err != nil {
			t.Fatal(err)
		}
		elsewhere = append(elsewhere, runs(name, framework.Pod{Claims: []string{name}}))
	}
	median := func(v []float64) float64 { return slices.Sorted(slices.Values(v))[len(v)/2] }
	figure(t, "pod-on-restored-claim-later", median(here)-median(plain), 5, "s")
	figure(t, "pod-on-claim-drawn-elsewhere-later", median(elsewhere)-median(plain), 15, "s")
}

// 200 claims with 5 snapshots each, half of them raw, 30 attached at a time: made, restored and deleted, nothing left behind.
func TestScaleMany(t *testing.T) {
	f := scaleFlow(t)
	begun := time.Now()
	t.Run("claim", func(t *testing.T) {
		for i := range *claims {
			t.Run(fmt.Sprint(i), func(t *testing.T) {
				t.Parallel()
				one(f.In(t), i, 5)
			})
		}
	})
	figure(t, fmt.Sprintf("claims-%d-with-5-snapshots-each", *claims), time.Since(begun).Minutes(), 20*float64(*claims)/200, "min")
	for what, list := range map[string]client.ObjectList{"LocalVolume": &rowanv1alpha1.LocalVolumeList{}, "LocalSnapshot": &rowanv1alpha1.LocalSnapshotList{}} {
		f.Empty(what, list)
	}
	for _, node := range nodes(t, f) {
		if left := inEngine(t, f, node); left != "" {
			t.Errorf("the engine of node %s has left: %s", node, left)
		}
	}
	for _, victim := range []string{"rowan-driver --node", "rowan-driver --controller", "rowan-controller"} {
		figure(t, strings.ReplaceAll(victim, " --", "-")+"-memory", resident(t, f, victim), 128, "MiB")
	}
}

// one is a claim's life: written, snapshotted, one snapshot restored and compared, all of it deleted.
func one(f *framework.Flow, i, snapshots int) {
	name := fmt.Sprintf("c-%d", i)
	q, restored := framework.Claim{Name: name, Block: i%2 == 0}, framework.Claim{Name: name + "-r", Block: i%2 == 0, Snapshot: name + "-0"}
	use := func(name, claim string) framework.Pod {
		if q.Block {
			return framework.Pod{Name: name, Blocks: []string{claim}}
		}
		return framework.Pod{Name: name, Claims: []string{claim}}
	}
	sum := func(p *corev1.Pod, claim string) string {
		if q.Block {
			return f.Run(p, "set -o pipefail; dd if="+framework.DeviceDir+claim+" bs=1M count=1 iflag=direct 2>/dev/null | sha256sum")
		}
		return f.Run(p, "sha256sum < "+framework.DataDir+claim+"/f")
	}
	pvc := f.Claim(q)
	p := f.Pod(use(name, name))
	if q.Block {
		f.Run(p, "dd if=/dev/urandom of="+framework.DeviceDir+name+" bs=1M count=1 oflag=direct 2>/dev/null")
	} else {
		f.Run(p, "head -c 100000 /dev/urandom > "+framework.DataDir+name+"/f; sync")
	}
	want := sum(p, name)
	for s := range snapshots {
		f.Snapshot(fmt.Sprintf("%s-%d", name, s), name)
	}
	f.Remove(p)
	r := f.Claim(restored)
	p = f.Pod(use(name+"-r", name+"-r"))
	if got := sum(p, name+"-r"); got != want {
		f.Errorf("restored %s has %s, want %s", name, got, want)
	}
	f.Remove(p)
	f.Remove(r)
	f.Remove(pvc)
	for s := range snapshots {
		f.RemoveSnapshot(fmt.Sprintf("%s-%d", name, s))
	}
}

// resident is the most memory that any process of that command line has, on any node, in MiB.
func resident(t *testing.T, f *framework.Flow, command string) (most float64) {
	t.Helper()
	var nodes corev1.NodeList
	if err := f.List(t.Context(), &nodes); err != nil {
		t.Fatal(err)
	}
	for _, n := range nodes.Items {
		out, err := f.OnNode(t.Context(), n.Name, "sh", "-c", fmt.Sprintf(
			`for p in $(pgrep -f '^[^ ]*[%s]%s'); do awk '/^VmRSS/ {print $2}' /proc/$p/status; done`, command[:1], command[1:]))
		if err != nil {
			t.Fatal(err)
		}
		for _, field := range strings.Fields(out) {
			kib, err := strconv.ParseFloat(field, 64)
			if err != nil {
				t.Fatalf("memory of %s on node %s: %v", command, n.Name, err)
			}
			most = max(most, kib/1024)
		}
	}
	if most == 0 {
		t.Fatalf("no process runs as %q", command)
	}
	return most
}

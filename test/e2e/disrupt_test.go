package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/test/e2e/framework"
)

// disturb is a flow that disturbs a whole node: alone, without a kill of its own.
func disturb(t *testing.T) *framework.Flow {
	t.Helper()
	c := cluster(t)
	if c.Machine == "" {
		t.Skip("needs a way to stop nodes: make e2e")
	}
	return c.Undisturbed(t)
}

// written is a claim with files on some node, and the pod that has it.
func written(f *framework.Flow) (pvc *corev1.PersistentVolumeClaim, p *corev1.Pod, hash string) {
	f.Helper()
	pvc = f.Claim(framework.Claim{Name: "data"})
	p = f.Pod(framework.Pod{Name: "p", Claims: []string{"data"}})
	f.WriteFiles(p, "/data/data/kept")
	return pvc, p, f.HashFiles(p, "/data/data/kept")
}

// again starts another pod on the claim and looks at its files.
func again(t *testing.T, f *framework.Flow, name, want string) *corev1.Pod {
	t.Helper()
	p := f.Pod(framework.Pod{Name: name, Claims: []string{"data"}})
	if got := f.HashFiles(p, "/data/data/kept"); got != want {
		t.Errorf("pod %s has files of hash %s, want %s", name, got, want)
	}
	return p
}

// A kubelet that dies takes nothing along, and serves new pods when it is back.
func TestDisruptKubelet(t *testing.T) {
	f := disturb(t)
	_, p, want := written(f)
	f.OnMachine("kill-kubelet", p.Spec.NodeName)
	f.OnMachine("start-kubelet", p.Spec.NodeName)
	f.Reachable(p)
	if got := f.HashFiles(p, "/data/data/kept"); got != want {
		t.Errorf("files of hash %s, want %s", got, want)
	}
	f.Remove(p)
	again(t, f, "q", want)
}

// A node whose power is cut and comes back has all that was flushed.
func TestDisruptPowerCut(t *testing.T) {
	f := disturb(t)
	_, p, want := written(f)
	f.OnMachine("stop-node", p.Spec.NodeName)
	f.OnMachine("start-node", p.Spec.NodeName)
	f.Remove(p)
	again(t, f, "q", want)
}

// A Node object that is deleted while its machine goes on, and made again when its kubelet restarts: nothing of it is touched meanwhile.
func TestDisruptNodeDeleted(t *testing.T) {
	f := disturb(t)
	pvc, p, want := written(f)
	name := p.Spec.NodeName
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name}}
	if err := f.Get(t.Context(), framework.Key(n), n); err != nil {
		t.Fatal(err)
	}
	f.Remove(n)
	f.OnMachine("kill-kubelet", name)
	f.OnMachine("start-kubelet", name)
	if err := client.IgnoreNotFound(f.Delete(t.Context(), p)); err != nil {
		t.Fatal(err)
	}
	framework.Gone(t, f.Cluster, p)
	again(t, f, "q", want)
	if v := handle(t, f, pvc); meta.IsStatusConditionTrue(v.Status.Conditions, rowanv1alpha1.Lost) {
		t.Errorf("volume %s is called lost: %v", v.Name, v.Status.Conditions)
	}
}

// Every pod of ours is deleted under a writer to a file system and one to a device, which verify what they wrote: neither sees an error or a wrong byte.
func TestDisruptEveryPodOfOurs(t *testing.T) {
	f := disturb(t)
	_, p, want := written(f)
	f.Claim(framework.Claim{Name: "disk", Block: true})
	w := f.Pod(framework.Pod{Name: "w", Blocks: []string{"disk"}, Node: p.Spec.NodeName})
	f.StartWriter(w, "disk")
	f.Run(p, `(i=0; while [ ! -e /tmp/stop ]; do i=$((i+1)); head -c 300000 /dev/urandom > /data/data/f || echo write >> /tmp/errors; sha256sum /data/data/f > /tmp/sum; sync /data/data/f
		sha256sum -c /tmp/sum >/dev/null 2>&1 || echo verify >> /tmp/errors; echo $i > /tmp/count; done) >/dev/null 2>&1 &`)
	all := ours(t, f)
	for _, o := range all {
		if o.Labels["app.kubernetes.io/component"] == "keeper" && o.Spec.NodeName == p.Spec.NodeName {
			continue // it is handed over to its successor by a node's administrator, not by force
		}
		f.Remove(&o)
	}
	f.OurPodsReady(len(all))
	count := f.Run(p, "cat /tmp/count")
	f.Run(p, fmt.Sprintf("for i in $(seq 300); do [ $(cat /tmp/count) -gt $((%s+3)) ] && exit 0; sleep 0.1; done; exit 1", count))
	if errs, err := f.Try(p, "touch /tmp/stop; cat /tmp/errors"); err == nil {
		t.Errorf("the writer saw: %s", errs)
	}
	f.WriterGoesOn(w)
	f.StopWriter(w)
	f.Remove(p)
	again(t, f, "q", want)
}

// A node that is installed anew under its old name: its volumes are lost, and a pod on one is told so instead of getting a blank one.
func TestDisruptReinstalled(t *testing.T) {
	f := disturb(t)
	pvc, p, _ := written(f)
	v := handle(t, f, pvc)
	name := p.Spec.NodeName
	f.OnMachine("stop-node", name)
	f.OnMachine("wipe-node", name)
	f.OnMachine("start-node", name)
	f.Remove(p)
	q := f.AskPod(framework.Pod{Name: "q", Claims: []string{"data"}})
	framework.Until(t, f.Cluster, v, framework.Wait, func(v *rowanv1alpha1.LocalVolume) error {
		if !meta.IsStatusConditionTrue(v.Status.Conditions, rowanv1alpha1.Lost) {
			return fmt.Errorf("conditions %v", v.Status.Conditions)
		}
		return nil
	})
	framework.UntilEvent(t, f.Cluster, q, "ost") // lost, or Lost
	if err := f.Get(t.Context(), framework.Key(q), q); err != nil || q.Status.Phase == corev1.PodRunning {
		t.Errorf("the pod is %s, %v: its volume was lost", q.Status.Phase, err)
	}
	replaceLost(f, v.Spec.Pool)
}

// replaceLost gives a pool up whose disk is lost, when the flow's claims are gone, and waits until its node has a new one.
func replaceLost(f *framework.Flow, name string) {
	lost := &rowanv1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: name}}
	f.OnEndDo(func(ctx context.Context) error {
		if err := f.GiveUp(ctx, lost); err != nil {
			return err
		}
		return f.AllPoolsServe(ctx, "default")
	})
}

// Disks that are put into a node of another name take their volumes along: pods follow, there and back.
func TestDisruptDisksMoved(t *testing.T) {
	f := disturb(t)
	_, p, want := written(f)
	from := p.Spec.NodeName
	to := otherNode(t, f, from)
	pool := f.PoolOn(from)
	lost := f.PoolOn(to) // its disk is thrown away
	move := func(from, to string) {
		t.Helper()
		f.OnMachine("stop-node", from)
		f.OnMachine("stop-node", to)
		f.OnMachine("move-disk", from, to)
		f.OnMachine("start-node", from)
		f.OnMachine("start-node", to)
		framework.Until(t, f.Cluster, pool, framework.Wait, func(p *rowanv1alpha1.Pool) error {
			if p.Spec.NodeName != to || !meta.IsStatusConditionTrue(p.Status.Conditions, rowanv1alpha1.Ready) {
				return fmt.Errorf("on node %s, want %s; conditions %v", p.Spec.NodeName, to, p.Status.Conditions)
			}
			return nil
		})
		f.Topology(to, pool.Status.Identity)
	}
	move(from, to)
	f.Remove(p)
	q := again(t, f, "q", want)
	if q.Spec.NodeName != to {
		t.Errorf("the pod runs on node %s, its disk is in %s", q.Spec.NodeName, to)
	}
	f.Run(q, "echo there > /data/data/there; sync")
	move(to, from)
	f.Remove(q)
	r := again(t, f, "r", want)
	if r.Spec.NodeName != from || f.Run(r, "cat /data/data/there") != "there" {
		t.Errorf("the pod runs on node %s, its disk is back in %s", r.Spec.NodeName, from)
	}
	replaceLost(f, lost.Name)
}

// An uninstallation that would strand volumes is refused, and says why.
func TestDisruptUninstallRefused(t *testing.T) {
	f := disturb(t)
	written(f)
	begun := time.Now()
	out, err := f.TryOnMachine("helm", "uninstall", "rowan", "--namespace", f.Options.Namespace, "--timeout", "60s")
	if err == nil {
		t.Fatalf("helm uninstall went through after %v: %s", time.Since(begun), out)
	}
	if !strings.Contains(out, "still in use") {
		t.Errorf("helm says: %s", out)
	}
	rollBackRelease(t, f)
	f.Pod(framework.Pod{Name: "after", Claims: []string{"data"}})
}

// rollBackRelease puts a release that Helm takes for one being uninstalled back to the revision it has, as the manual says.
func rollBackRelease(t *testing.T, f *framework.Flow) {
	t.Helper()
	out, err := f.TryOnMachine("helm", "status", "rowan", "--namespace", f.Options.Namespace, "--output", "json")
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	var release struct{ Version int }
	if err := json.Unmarshal([]byte(out), &release); err != nil || release.Version == 0 {
		t.Fatalf("helm status says %s: %v", out, err)
	}
	f.OnMachine("helm", "rollback", "rowan", fmt.Sprint(release.Version), "--namespace", f.Options.Namespace)
}

package framework

import (
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// victims are what a flow may lose: a command line that names the process on a node. The keeper is not among them: it is what makes the others' deaths
// harmless, and is replaced by hand, one node at a time.
var victims = []string{"rowan-engine --", "rowan-driver --node", "rowan-driver --controller", "rowan-controller", "csi-provisioner", "csi-snapshotter"}

// kill is a flow's: which process ends, on every node that has it, at which of the flow's steps.
type kill struct {
	victim string
	at     int
	count  atomic.Int32
}

// mostSteps is how many steps a kill is drawn from: most flows have about so many.
const mostSteps = 8

// drawKill draws a test's kill from the run's seed and the test's name, so that a test run alone has the same.
func (c *Cluster) drawKill(t testing.TB) *kill {
	if c.NodeExec == "" {
		return nil
	}
	h := fnv.New64a()
	h.Write([]byte(t.Name()))
	r := rand.New(rand.NewPCG(c.Seed, h.Sum64()))
	k := &kill{victim: victims[r.IntN(len(victims))], at: 1 + r.IntN(mostSteps)}
	t.Logf("seed %d: kills %s at step %d", c.Seed, k.victim, k.at)
	return k
}

// step counts the flow's steps, right after something was asked for and before it is there, and kills at the drawn one.
func (f *Flow) step() {
	f.Helper()
	if f.kill == nil {
		return
	}
	if int(f.kill.count.Add(1)) == f.kill.at {
		must(f, f.Kill(f.kill.victim))
	}
}

// Kill ends a process, on every node that has it, at once.
func (f *Flow) Kill(victim string) error {
	var nodes corev1.NodeList
	if err := f.List(f.Context(), &nodes); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range nodes.Items {
		// pkill's exit code 1: there is none on this node. [r] keeps the shell's own command line from matching.
		pattern := "[" + victim[:1] + "]" + victim[1:]
		out, err := f.OnNode(f.Context(), n.Name, "sh", "-c", fmt.Sprintf("pkill -KILL -f '^[^ ]*%s' || [ $? = 1 ]", pattern))
		if err != nil {
			return fmt.Errorf("kill %s: %w: %s", victim, err, out)
		}
	}
	f.Logf("killed %s", victim)
	return nil
}

// OnMachine does something to the cluster's machines, as hack/cluster's commands do: "stop-node", "node-1".
func (f *Flow) OnMachine(words ...string) {
	f.Helper()
	out, err := f.TryOnMachine(words...)
	if err != nil {
		f.Fatalf("%v: %s", err, out)
	}
}

// TryOnMachine is OnMachine with what was printed.
func (f *Flow) TryOnMachine(words ...string) (string, error) {
	var args []string
	for _, word := range strings.Fields(f.Machine) {
		if word == "{command}" {
			word = words[0]
		}
		args = append(args, word)
	}
	args = append(args, words[1:]...)
	out, err := exec.CommandContext(f.Context(), args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("%s: %w", strings.Join(words, " "), err)
	}
	return string(out), nil
}

// OurPodsReady waits until Rowan has as many pods as before, all of them ready.
func (f *Flow) OurPodsReady(count int) {
	f.Helper()
	ctx, cancel := context.WithTimeout(f.Context(), Wait)
	defer cancel()
	in := client.InNamespace(f.Options.Namespace)
	w, err := f.Watch(ctx, &corev1.PodList{}, in)
	must(f, err)
	defer w.Stop()
	for {
		var pods corev1.PodList
		must(f, f.List(f.Context(), &pods, in))
		ready := 0
		for _, p := range pods.Items {
			if p.DeletionTimestamp.IsZero() && podReady(&p) {
				ready++
			}
		}
		if ready >= count {
			return
		}
		if _, open := <-w.ResultChan(); !open {
			f.Fatalf("%d of %d pods of ours are ready after %v", ready, count, Wait)
		}
	}
}

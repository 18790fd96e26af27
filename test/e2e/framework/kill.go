package framework

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// victim is a process that a flow may lose.
type victim struct {
	name    string
	command string // line that it begins with, on a node
}

// victims: the keeper is not among them: it is what makes the others' deaths harmless, and is replaced by hand, one node at a time.
var victims = []victim{{"engine", "rowan-engine --"}, {"node-plugin", "rowan-driver --node"}, {"csi-controller", "rowan-driver --controller"},
	{"rowan-controller", "rowan-controller"}, {"provisioner", "csi-provisioner"}, {"snapshotter", "csi-snapshotter"}}

// Victims are the names that Options.Victim may have.
func Victims() (names []string) {
	for _, v := range victims {
		names = append(names, v.name)
	}
	return names
}

func (o *Options) checkVictim() error {
	if names := Victims(); o.Victim != "" && !slices.Contains(names, o.Victim) {
		return fmt.Errorf("no process %q to kill: want one of %s", o.Victim, strings.Join(names, ", "))
	}
	return nil
}

// Attributes of a test that say that it draws a kill, and that it has killed.
const (
	AttrDrawn  = "kill-drawn"
	AttrKilled = "killed"
)

// kill is a flow's: which process ends, on every node that has it, at which of the flow's steps.
type kill struct {
	victim
	at    int
	count atomic.Int32
}

// MostSteps is how many steps a kill is drawn from: most flows have about so many.
const MostSteps = 8

// drawKill draws a test's kill from the run's seed and the test's name, so that a test run alone has the same.
func (c *Cluster) drawKill(t testing.TB) *kill {
	if c.NodeExec == "" {
		return nil
	}
	h := fnv.New64a()
	h.Write([]byte(t.Name()))
	r := rand.New(rand.NewPCG(c.Seed, h.Sum64()))
	k := &kill{victim: victims[r.IntN(len(victims))], at: 1 + r.IntN(cmp.Or(c.KillWithin, MostSteps))}
	for _, v := range victims {
		if v.name == c.Victim {
			k.victim = v
		}
	}
	t.Logf("seed %d: kills %s at step %d", c.Seed, k.command, k.at)
	t.Attr(AttrDrawn, k.name)
	return k
}

// step counts the flow's steps, right after something was asked for and before it is there, and kills at the drawn one.
func (f *Flow) step() {
	f.Helper()
	if f.kill == nil {
		return
	}
	if int(f.kill.count.Add(1)) == f.kill.at {
		must(f, f.Kill(f.kill.command))
		f.Attr(AttrKilled, f.kill.name)
	}
}

// Kill ends a process, told by how its command line begins, on every node that has it, at once.
func (f *Flow) Kill(command string) error {
	var nodes corev1.NodeList
	if err := f.List(f.Context(), &nodes); err != nil {
		return fmt.Errorf("list nodes: %w", err)
	}
	for _, n := range nodes.Items {
		// pkill's exit code 1: there is none on this node. [r] keeps the shell's own command line from matching.
		pattern := "[" + command[:1] + "]" + command[1:]
		out, err := f.OnNode(f.Context(), n.Name, "sh", "-c", fmt.Sprintf("pkill -KILL -f '^[^ ]*%s' || [ $? = 1 ]", pattern))
		if err != nil {
			return fmt.Errorf("kill %s: %w: %s", command, err, out)
		}
	}
	f.Logf("killed %s", command)
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

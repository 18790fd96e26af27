package agent

import (
	"testing"

	"sigs.k8s.io/controller-runtime/pkg/client"
)

// atEveryCall goes through a life again and again, the agent ended at its n-th call, before and after the call did its work, until no step of a life has so many.
// One step makes at least so many. life returns the calls that were hit.
func atEveryCall(t *testing.T, least int, life func(n int, after bool) (hits string)) {
	t.Helper()
	for n := 0; ; n++ {
		hits := ""
		for _, after := range []bool{false, true} {
			hits += life(n, after)
		}
		if hits == "" {
			if n < least {
				t.Errorf("only %d calls were made", n)
			}
			return
		}
	}
}

// ended is a step of a life: do asks for something, attempt carries it out until the agent is ended at its n-th call, and the next agent finishes. It returns
// the call that was hit.
func (w *world) ended(n int, after bool, what string, do func(), attempt func() error) (hit string) {
	w.t.Helper()
	do()
	w.faults.arm(n, after)
	if err := attempt(); err != nil {
		w.t.Log(err)
	}
	hit = w.faults.disarm()
	w.startAgent()
	if err := w.settle(); err != nil {
		w.t.Fatalf("%s, %s failed (after: %t), then: %v", what, hit, after, err)
	}
	return hit
}

// released takes the finalizer off and deletes, as the controller does with what is gone.
func (w *world) released(o client.Object) {
	w.t.Helper()
	o.SetFinalizers(nil)
	must(w.t, w.client.Update(w.t.Context(), o))
	must(w.t, w.client.Delete(w.t.Context(), o))
}

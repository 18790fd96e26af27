package cluster

import (
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// agents knows which nodes' agents live, by their leases. A renewal counts from when it was seen here, so that a node's clock that is wrong takes
// nobody out of service; only what a process that starts finds is judged by the time that the lease says.
type agents struct {
	now func() time.Time

	mu   sync.Mutex
	seen map[string]renewal // by the lease's name; guarded by mu
}

type renewal struct {
	stamp time.Time // as the lease says
	at    time.Time // by our clock
}

// observe is told of every lease in the namespace.
func (a *agents) observe(obj client.Object) {
	lease, ok := obj.(*coordinationv1.Lease)
	if !ok || lease.Spec.RenewTime == nil {
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	stamp := lease.Spec.RenewTime.Time
	before, known := a.seen[lease.Name]
	if known && before.stamp.Equal(stamp) {
		return
	}
	at := a.now()
	if !known && stamp.Before(at) {
		at = stamp
	}
	if a.seen == nil {
		a.seen = make(map[string]renewal)
	}
	a.seen[lease.Name] = renewal{stamp: stamp, at: at}
}

// away is nil while the node's agent lives, else volume.ErrNodeAway.
func (a *agents) away(node string) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	r, known := a.seen[v1alpha1.AgentLease(node)]
	switch {
	case !known:
		return fmt.Errorf("%w: Rowan's agent on node %s has never reported: see whether a rowan-node pod runs there", volume.ErrNodeAway, node)
	case a.now().Sub(r.at) >= v1alpha1.AgentSilence:
		return fmt.Errorf("%w: Rowan's agent on node %s has been silent since %s: see the node and its rowan-node pod",
			volume.ErrNodeAway, node, r.at.UTC().Format(time.RFC3339))
	}
	return nil
}

package kit

import (
	"context"
	"fmt"
	"sync"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// Agents says which agents live, by their leases. A lease's time is its node's clock, which may be wrong; so an agent lives, too, while its renewals
// are seen to go on by this process's own clock.
type Agents struct {
	kit *Kit

	mu   sync.Mutex
	seen map[string]renewal // by lease
}

type renewal struct {
	told time.Time // by the agent
	at   time.Time // when it was first seen; zero: it was there when this process began
}

// NewAgents knows nothing yet.
func NewAgents(k *Kit) *Agents { return &Agents{kit: k, seen: map[string]renewal{}} }

// Alive says whether that node's agent renews its lease. A node that has none has no agent.
func (a *Agents) Alive(ctx context.Context, node string) (bool, error) {
	var lease coordinationv1.Lease
	err := a.kit.Client.Get(ctx, client.ObjectKey{Namespace: a.kit.Namespace, Name: v1alpha1.AgentLease(node)}, &lease)
	switch {
	case apierrors.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, fmt.Errorf("get lease of the agent of node %q: %w", node, err)
	}
	return a.AliveBy(&lease), nil
}

// AliveBy is Alive of a lease that was read.
func (a *Agents) AliveBy(lease *coordinationv1.Lease) bool {
	if lease.Spec.RenewTime == nil {
		return false
	}
	now, told := a.kit.Clock.Now(), lease.Spec.RenewTime.Time
	a.mu.Lock()
	defer a.mu.Unlock()
	last, known := a.seen[lease.Name]
	switch {
	case !known:
		last = renewal{told: told}
	case !last.told.Equal(told):
		last = renewal{told: told, at: now}
	}
	a.seen[lease.Name] = last
	age := now.Sub(told)
	return age < v1alpha1.AgentSilence && age > -v1alpha1.AgentSilence || !last.at.IsZero() && now.Sub(last.at) < v1alpha1.AgentSilence
}

// NodeOf is the node whose agent holds the lease; "" of any other lease. An agent may write no lease but its own, so the name must be the holder's.
func NodeOf(lease *coordinationv1.Lease) string {
	if h := lease.Spec.HolderIdentity; h != nil && v1alpha1.AgentLease(*h) == lease.Name {
		return *h
	}
	return ""
}

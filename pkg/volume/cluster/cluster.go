// Package cluster is the volume.Controller of a Kubernetes cluster: volumes, snapshots and groups are custom resources (package v1alpha1) that each
// node's agent carries out.
//
// Contract:
//   - It keeps no state. An object is named by its handle, and creating it is the lock, so several processes work at once: whoever finds the object
//     there compares its spec and waits along. Reads are answered from an informer's cache; what the cache lacks is read live before it is said to
//     be gone.
//   - It waits for status by watch events, for as long as the call's context allows, less a margin in which its own words reach the caller. An error
//     that is final (reason.Final) takes the object away again, both keys written, before the call answers. Any other leaves it for the retry, and
//     the answer is volume.ErrUnavailable or the context's error: never ErrNotFound, nor one after which the caller forgets the object.
//   - Blocks are only freed by two keys: spec.desiredState Absent, then a deletion. An object whose node is lost (NodeLost) answers with both keys
//     written; it stays as a tombstone, which the node carries out when it returns, and counts as gone here.
//   - A node whose agent has not renewed its lease for v1alpha1.AgentSilence gets no new commands (volume.ErrNodeAway).
//   - Placement (place.go) and admission (space.go) are functions of objects alone. Two processes may admit at once what only one of them should: a
//     second look, after the object was made, counts the older ones, and the younger gives way. What is left is less than the calls in flight:
//     objects made within the same second that do not see each other yet. Growth has one look: a spec cannot shrink.
//
// Limits: a volume's format, what it maps and whether it was written are not told here (volume.Node has them). A copy stays in its source's pool.
package cluster

import (
	"cmp"
	"context"
	"fmt"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// Cache answers reads from memory and tells of changes.
type Cache interface {
	client.Reader
	// Watch calls changed for every object of obj's kind that is there, that comes, changes or goes, after reads show it.
	Watch(ctx context.Context, obj client.Object, changed func(client.Object)) error
	// Synced says whether what was there at the start has been read.
	Synced() bool
}

// Config is what the service works with.
type Config struct {
	Client         client.Client // writes, and reads live
	Cache          Cache
	DefaultPoolSet string // of volumes whose storage class names none
	// Now is the clock that leases are judged by; default time.Now.
	Now func() time.Time
}

// Service is the cluster.
type Service struct {
	cfg    Config
	hub    hub
	agents agents
}

var (
	_ volume.Controller = (*Service)(nil)
	_ volume.Peeker     = (*Service)(nil)
)

// New makes the service and begins to watch.
func New(ctx context.Context, cfg Config) (*Service, error) {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	cfg.DefaultPoolSet = cmp.Or(cfg.DefaultPoolSet, "default")
	s := &Service{cfg: cfg, agents: agents{now: cfg.Now}}
	for _, w := range []struct {
		obj     client.Object
		changed func(client.Object)
	}{
		{&v1alpha1.LocalVolume{}, s.hub.changed},
		{&v1alpha1.LocalSnapshot{}, s.hub.changed},
		{&v1alpha1.LocalSnapshotGroup{}, s.hub.changed},
		{&v1alpha1.Pool{}, func(client.Object) {}},
		{&coordinationv1.Lease{}, s.agents.observe},
	} {
		if err := cfg.Cache.Watch(ctx, w.obj, w.changed); err != nil {
			return nil, fmt.Errorf("watch %T: %w", w.obj, err)
		}
	}
	return s, nil
}

// Health implements volume.Controller: it is about reading the cluster's objects, not about nodes.
func (s *Service) Health(context.Context) error {
	if !s.cfg.Cache.Synced() {
		return fmt.Errorf("%w: the cluster's volumes have not been read yet", volume.ErrUnavailable)
	}
	return nil
}

// The time that a call has whose context has no deadline, and the most of it that is kept back for the answer.
const (
	defaultTime = 30 * time.Second
	maxMargin   = 2 * time.Second
)

// within is the context that a call waits with. It ends a little before the caller's, so that what is known by then still reaches the caller.
func within(ctx context.Context) (context.Context, context.CancelFunc) {
	left := defaultTime
	if deadline, ok := ctx.Deadline(); ok {
		left = time.Until(deadline)
		left -= min(maxMargin, left/10)
	}
	return context.WithTimeout(ctx, left)
}

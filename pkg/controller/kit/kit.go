// Package kit is what all controllers share: the client, the clock, the objects of nodes seen as one kind, and whether an agent lives.
//
// Contract: every write is a patch that carries the resource version that was read, so that a controller that acts on an old view fails with a
// conflict and looks again, and two leaders that overlap for a moment do no harm. A condition is written only where it changes.
package kit

import (
	"time"

	"k8s.io/client-go/tools/events"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Config is what an operator may set.
type Config struct {
	// Namespace of the release: the agents' leases are there.
	Namespace string
	// NodeLostAfter is how long a Node must be gone and its agent silent, until its objects say NodeLost.
	NodeLostAfter time.Duration
	// UnselectedAfter is how long a PoolSet must not have chosen a node, until that node's empty pool is given up: a node that registers again has
	// lost its labels for a moment.
	UnselectedAfter time.Duration
	// FinalizeAfter is how long after Deleted=True a finalizer that is still there is removed: normally the call that asked for the deletion removes
	// it.
	FinalizeAfter time.Duration
	// ProbeEvery is how often it is looked for definitions (snapshots, CDI) that are not installed.
	ProbeEvery time.Duration
	// SnapshotPolicies says whether SnapshotPolicies are carried out here.
	SnapshotPolicies bool
	// SettleFor is how long a SnapshotPolicy waits for more events after one, so that many snapshots that become ready are one pass.
	SettleFor time.Duration
}

// DefaultConfig is what the flags say when nobody sets them.
var DefaultConfig = Config{
	NodeLostAfter:   10 * time.Minute,
	UnselectedAfter: time.Minute,
	FinalizeAfter:   10 * time.Second,
	ProbeEvery:      30 * time.Second,

	SnapshotPolicies: true,
	SettleFor:        500 * time.Millisecond,
}

// Kit is what a controller works with.
type Kit struct {
	Config
	// Client reads from the cache.
	Client client.Client
	// Live reads from the API server: what is about to be given up is looked at there.
	Live client.Reader
	// Events speak to the operator, on the objects that he knows.
	Events events.EventRecorder
	Clock  clock.PassiveClock
}

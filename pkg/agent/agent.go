package agent

import (
	"context"
	"time"

	"golang.org/x/time/rate"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/events"
	"k8s.io/client-go/util/workqueue"
	"k8s.io/utils/clock"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/controller"
	"sigs.k8s.io/controller-runtime/pkg/event"
	"sigs.k8s.io/controller-runtime/pkg/reconcile"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

// Config says which node it is. All but Clock and Freeze must be set.
type Config struct {
	Node         string           // the Node object's name
	Namespace    string           // of the agent's lease
	IdentityFile string           // remembers the node's identity; its folder is there and survives restarts of the machine
	Interval     time.Duration    // how often pools are looked at for what only the engine knows
	Clock        clock.WithTicker // default: the real one
	Freeze       local.Freeze     // nil: no file system is frozen, and a snapshot that needs it is refused
}

// Agent is the node's agent.
type Agent struct {
	cfg      Config
	client   client.Client // reads from the cache
	reader   client.Reader // reads from the API server
	engine   Engine
	events   events.EventRecorder
	identity *identity

	// What is to be looked at although its object did not change.
	oddVolumes   chan event.TypedGenericEvent[*v1alpha1.LocalVolume]
	oddSnapshots chan event.TypedGenericEvent[*v1alpha1.LocalSnapshot]
	oddNode      chan struct{}
}

// New makes an agent. c reads from a cache with Selectors, reader from the API server.
func New(c client.Client, reader client.Reader, e Engine, recorder events.EventRecorder, cfg Config) (*Agent, error) {
	if cfg.Clock == nil {
		cfg.Clock = clock.RealClock{}
	}
	id, err := loadIdentity(cfg.IdentityFile)
	if err != nil {
		return nil, err
	}
	return &Agent{
		cfg: cfg, client: c, reader: reader, engine: e, events: recorder, identity: id,
		oddVolumes:   make(chan event.TypedGenericEvent[*v1alpha1.LocalVolume], oddMax),
		oddSnapshots: make(chan event.TypedGenericEvent[*v1alpha1.LocalSnapshot], oddMax),
		oddNode:      make(chan struct{}, 1),
	}, nil
}

// Scheme is of the kinds that the agent reads and writes.
func Scheme() (*runtime.Scheme, error) {
	s := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(s); err != nil {
		return nil, err
	}
	return s, v1alpha1.AddToScheme(s)
}

// Selectors let the cache hold this node's objects only. That is not for economy alone: the agent may read no others in some clusters.
func Selectors(node string) map[client.Object]cache.ByObject {
	mine := cache.ByObject{Field: fields.OneTermEqualSelector("spec.nodeName", node)}
	return map[client.Object]cache.ByObject{
		&v1alpha1.Pool{}: mine, &v1alpha1.LocalVolume{}: mine, &v1alpha1.LocalSnapshot{}: mine, &v1alpha1.LocalSnapshotGroup{}: mine,
	}
}

// Uncached are kinds that are not read from the cache.
func Uncached() []client.Object { return []client.Object{&coordinationv1.Lease{}, &corev1.Node{}} }

// options are those of every reconciler: tried again soon, for an engine is away for seconds only. Most of a reconciliation is waiting for the API server:
// with 16 at a time the last of 50 snapshots asked for at once waited for three others.
func options() controller.Options {
	return controller.Options{
		MaxConcurrentReconciles: 64,
		RateLimiter: workqueue.NewTypedMaxOfRateLimiter(
			workqueue.NewTypedItemExponentialFailureRateLimiter[reconcile.Request](20*time.Millisecond, 5*time.Second),
			&workqueue.TypedBucketRateLimiter[reconcile.Request]{Limiter: rate.NewLimiter(200, 1000)},
		),
	}
}

// again has the object looked at after the interval.
func (a *Agent) again() reconcile.Result { return reconcile.Result{RequeueAfter: a.cfg.Interval} }

// oddMax is how many objects wait to be looked at, at most: the rest come when their pool is looked at next.
const oddMax = 1024

// lookAt has a volume's status follow the engine. It never waits.
func (a *Agent) lookAt(_ context.Context, v *v1alpha1.LocalVolume) {
	select {
	case a.oddVolumes <- event.TypedGenericEvent[*v1alpha1.LocalVolume]{Object: v}:
	default:
	}
}

// lookAtNode has the Node follow at once what became of its disks: until its label does, pods are sent where their disk is not. It never waits.
func (a *Agent) lookAtNode() {
	select {
	case a.oddNode <- struct{}{}:
	default:
	}
}

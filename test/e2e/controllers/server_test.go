package controllers

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/rest"
	"k8s.io/klog/v2"
	clocktesting "k8s.io/utils/clock/testing"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/config"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	metricsserver "sigs.k8s.io/controller-runtime/pkg/metrics/server"
	"sigs.k8s.io/yaml"

	"github.com/rowan-csi/rowan/hack/cluster/build"
	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

const (
	namespace = "rowan-system"
	deadline  = 45 * time.Second
)

// world is an API server that the controllers run against.
type world struct {
	client.Client
	t     *testing.T
	admin *rest.Config
	env   *envtest.Environment
	cache build.Cache
	clock *clocktesting.FakePassiveClock
}

func start(t *testing.T) *world {
	t.Helper()
	folder, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	programs, err := build.Locate(folder, build.Kubernetes)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"etcd", "kube-apiserver", "helm"} {
		if _, err := os.Stat(programs.Program(p)); err != nil {
			t.Skip("needs etcd, kube-apiserver and helm: go run ./hack/cluster build")
		}
	}
	ctrl.SetLogger(klog.Background())
	env := &envtest.Environment{
		BinaryAssetsDirectory: programs.Bin(), CRDDirectoryPaths: []string{"../../../pkg/apis/v1alpha1/crds"}, ErrorIfCRDPathMissing: true,
		ControlPlaneStartTimeout: time.Minute, ControlPlaneStopTimeout: time.Minute,
	}
	admin, err := env.Start()
	t.Cleanup(func() {
		if err := env.Stop(); err != nil {
			t.Error(err)
		}
	})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, admin: admin, env: env, cache: programs, clock: clocktesting.NewFakePassiveClock(time.Now())}
	w.Client, err = client.New(admin, client.Options{Scheme: w.scheme()})
	w.must(err)
	w.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}})
	w.apply(w.helm("templates/rbac-controller.yaml"))
	return w
}

func (w *world) must(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	w.must(controller.AddToScheme(s))
	w.must(eventsv1.AddToScheme(s))
	return s
}

// helm renders one template of the chart.
func (w *world) helm(template string) string {
	w.t.Helper()
	out, err := exec.CommandContext(w.t.Context(), w.cache.Program("helm"), "template", "rowan", "../../../charts/rowan", "--namespace", namespace,
		"--show-only", template, "--kube-version", build.Kubernetes).CombinedOutput()
	if err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	return string(out)
}

// apply makes the objects of a manifest.
func (w *world) apply(manifest string) {
	w.t.Helper()
	for _, doc := range strings.Split(manifest, "\n---\n") {
		o := &unstructured.Unstructured{}
		w.must(yaml.Unmarshal([]byte(doc), &o.Object))
		if len(o.Object) > 0 {
			w.create(o)
		}
	}
}

func (w *world) create(objects ...client.Object) {
	w.t.Helper()
	for _, o := range objects {
		if err := w.Create(w.t.Context(), o); err != nil {
			w.t.Fatalf("create %T %s: %v", o, o.GetName(), err)
		}
	}
}

// run a replica of rowan-controller as its service account, until stop. elect: it works while it holds the lease; else at once.
func (w *world) run(elect bool) (stop func()) {
	w.t.Helper()
	stop, _ = w.runWith(elect, nil)
	return stop
}

// runWith runs a replica whose client is wrapped, and says when it has ended.
func (w *world) runWith(elect bool, wrap func(client.WithWatch) client.WithWatch) (stop func(), ended <-chan struct{}) {
	w.t.Helper()
	user := rest.CopyConfig(w.admin)
	user.Impersonate = rest.ImpersonationConfig{UserName: "system:serviceaccount:" + namespace + ":rowan-controller",
		Groups: []string{"system:serviceaccounts", "system:authenticated"}}
	user.QPS, user.Burst = 100, 200
	again := true
	lease, renew, retry := 3*time.Second, 2*time.Second, 500*time.Millisecond
	m, err := ctrl.NewManager(user, ctrl.Options{
		Scheme: w.scheme(), Cache: controller.CacheOptions(namespace), Metrics: metricsserver.Options{BindAddress: "0"},
		LeaderElection: elect, LeaderElectionID: "rowan-controller", LeaderElectionNamespace: namespace,
		LeaseDuration: &lease, RenewDeadline: &renew, RetryPeriod: &retry,
		Controller: config.Controller{SkipNameValidation: &again}, // several replicas in one process
		NewClient: func(cfg *rest.Config, o client.Options) (client.Client, error) {
			c, err := client.NewWithWatch(cfg, o)
			if err != nil || wrap == nil {
				return c, err
			}
			return wrap(c), nil
		},
	})
	w.must(err)
	k := &kit.Kit{Config: kit.DefaultConfig, Client: m.GetClient(), Live: m.GetAPIReader(), Events: m.GetEventRecorder("rowan-controller"),
		Clock: w.clock}
	k.Namespace, k.ProbeEvery, k.UnselectedAfter, k.SettleFor = namespace, 200*time.Millisecond, time.Second, 10*time.Millisecond
	ctx, cancel := context.WithCancel(w.t.Context())
	w.must(controller.Register(ctx, m, k))
	done, over := make(chan error, 1), make(chan struct{})
	go func() {
		done <- m.Start(ctx)
		close(over)
	}()
	stopped := false
	stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-done; err != nil && !elect { // one that lost its lease says so
			w.t.Error(err)
		}
	}
	w.t.Cleanup(stop)
	return stop, over
}

// until cond holds, or the deadline is over.
func (w *world) until(what string, cond func() (bool, error)) {
	w.t.Helper()
	var last error
	err := wait.PollUntilContextTimeout(w.t.Context(), 2*time.Millisecond, deadline, true, func(context.Context) (bool, error) {
		ok, err := cond()
		last = err
		return ok && err == nil, nil
	})
	if err != nil {
		w.t.Fatalf("%s: %v (%v)", what, err, last)
	}
}

func (w *world) get(o client.Object, name string) error {
	return w.Get(w.t.Context(), client.ObjectKey{Namespace: o.GetNamespace(), Name: name}, o)
}

// change an object, or its status.
func (w *world) change(o client.Object, status bool, change func()) {
	w.t.Helper()
	before := o.DeepCopyObject().(client.Object)
	change()
	if status {
		w.must(w.Status().Patch(w.t.Context(), o, client.MergeFrom(before)))
		return
	}
	w.must(w.Patch(w.t.Context(), o, client.MergeFrom(before)))
}

// node that runs our node plugin.
func (w *world) node(name string, labels map[string]string) *corev1.Node {
	w.t.Helper()
	n := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: name, Labels: labels}}
	w.create(n)
	w.create(&storagev1.CSINode{
		ObjectMeta: metav1.ObjectMeta{Name: name, OwnerReferences: []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: name, UID: n.UID}}},
		Spec:       storagev1.CSINodeSpec{Drivers: []storagev1.CSINodeDriver{{Name: v1alpha1.DriverName, NodeID: name}}},
	})
	return n
}

// renew plays an agent's lease.
func (w *world) renew(node, foreign string) {
	w.t.Helper()
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.AgentLease(node)}}
	now := metav1.NewMicroTime(w.clock.Now())
	if err := w.get(l, l.Name); err != nil {
		l.Spec.HolderIdentity, l.Spec.RenewTime = &node, &now
		l.Annotations = map[string]string{v1alpha1.ForeignPools: foreign}
		w.create(l)
		return
	}
	w.change(l, false, func() {
		l.Spec.RenewTime, l.Annotations = &now, map[string]string{v1alpha1.ForeignPools: foreign}
	})
}

// finish plays the agent that removed what was to be removed.
func (w *world) finish(o client.Object) {
	w.t.Helper()
	w.change(o, true, func() {
		s := kit.ViewOf(o).Status
		s.Conditions = append(s.Conditions, metav1.Condition{Type: v1alpha1.Deleted, Status: metav1.ConditionTrue, Reason: v1alpha1.ReasonDone,
			LastTransitionTime: metav1.NewTime(w.clock.Now())})
	})
}

func (w *world) path(parts ...string) string {
	return filepath.Join(append([]string{w.cache.Manifests()}, parts...)...)
}

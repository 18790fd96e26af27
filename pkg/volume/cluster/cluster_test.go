package cluster_test

import (
	"context"
	"testing"
	"time"

	coordinationv1 "k8s.io/api/coordination/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/cluster"
	"github.com/rowan-csi/rowan/pkg/volume/volumetest"
)

// fixture is a cluster of one node and its pool, and one controller.
type fixture struct {
	*cluster.Service
	t     *testing.T
	api   *apiServer
	cache *fakeCache
	agent *agent
}

// newFixture makes a cluster whose node is named and identified as the conformance suite wants; agents' leases are judged by now.
func newFixture(t *testing.T, now func() time.Time) *fixture {
	t.Helper()
	f := &fixture{t: t, api: newAPIServer(t)}
	f.cache = &fakeCache{apiServer: f.api}
	f.addPool(volumetest.Pool, "worker-a", string(volumetest.Node), volumetest.PoolSize)
	f.Service = f.controller(now)
	f.agent = newAgent(t, f.api, f.cache, "worker-a", string(volumetest.Node), volumetest.Pool)
	return f
}

// controller is one more process of the controller.
func (f *fixture) controller(now func() time.Time) *cluster.Service {
	f.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	f.t.Cleanup(cancel)
	s, err := cluster.New(ctx, cluster.Config{Client: f.api, Cache: f.cache, DefaultPoolSet: volumetest.Pool, Now: now})
	if err != nil {
		f.t.Fatal(err)
	}
	return s
}

// addPool makes a pool that serves, in the PoolSet that the suite calls Pool, and its node's lease.
func (f *fixture) addPool(name, node, identity string, size int64) {
	f.t.Helper()
	q := bytes(size)
	p := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: v1alpha1.PoolSpec{NodeName: node, PoolSet: volumetest.Pool, PoolTemplate: v1alpha1.PoolTemplate{
			OvercommitPercent: 200, Members: []v1alpha1.Member{{Directory: &v1alpha1.DirectoryMember{Path: "/pool"}}},
		}},
	}
	f.create(p)
	f.status(p, func() {
		p.Status = v1alpha1.PoolStatus{UUID: "uuid-" + name, Identity: identity, Size: &q}
		state(&p.Status.Conditions, v1alpha1.Ready, 1, nil)
	})
	f.create(&coordinationv1.Lease{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.AgentLease(node)},
		Spec:       coordinationv1.LeaseSpec{RenewTime: &metav1.MicroTime{Time: time.Now()}},
	})
}

func (f *fixture) create(obj client.Object) {
	f.t.Helper()
	if err := f.api.Create(f.t.Context(), obj); err != nil {
		f.t.Fatal(err)
	}
}

// status changes an object's status, which change does to obj.
func (f *fixture) status(obj client.Object, change func()) {
	f.t.Helper()
	if err := f.api.Get(f.t.Context(), client.ObjectKeyFromObject(obj), obj); err != nil {
		f.t.Fatal(err)
	}
	before, ok := obj.DeepCopyObject().(client.Object)
	if !ok {
		f.t.Fatalf("%T", obj)
	}
	change()
	if err := f.api.Status().Patch(f.t.Context(), obj, client.MergeFrom(before)); err != nil {
		f.t.Fatal(err)
	}
}

func TestConformance(t *testing.T) {
	volumetest.RunHalves(t, func(t *testing.T) (volume.Controller, volume.Node) {
		f := newFixture(t, nil)
		return f.Service, f.agent
	})
}

func (f *fixture) lease(node string) *coordinationv1.Lease {
	f.t.Helper()
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: v1alpha1.AgentLease(node)}}
}

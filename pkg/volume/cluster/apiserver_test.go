package cluster_test

import (
	"context"
	"errors"
	"os"
	"testing"

	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/cluster"
	"github.com/rowan-csi/rowan/pkg/volume/volumetest"
)

// TestConformanceOnAPIServer is the suite over a real API server and informers: ROWAN_TEST_KUBECONFIG names one that has the definitions and nothing
// of ours. All Pools, volumes, snapshots and groups that it has are removed.
func TestConformanceOnAPIServer(t *testing.T) {
	path := os.Getenv("ROWAN_TEST_KUBECONFIG")
	if path == "" {
		t.Skip("ROWAN_TEST_KUBECONFIG names no API server")
	}
	cfg, err := clientcmd.BuildConfigFromFlags("", path)
	if err != nil {
		t.Fatal(err)
	}
	cfg.QPS, cfg.Burst = 1000, 1000
	scheme := runtime.NewScheme()
	if err := errors.Join(v1alpha1.AddToScheme(scheme), coordinationv1.AddToScheme(scheme), corev1.AddToScheme(scheme)); err != nil {
		t.Fatal(err)
	}
	c, err := client.NewWithWatch(cfg, client.Options{Scheme: scheme})
	if err != nil {
		t.Fatal(err)
	}
	volumetest.RunHalves(t, func(t *testing.T) (volume.Controller, volume.Node) { return onAPIServer(t, cfg, c, scheme) })
}

func onAPIServer(t *testing.T, cfg *rest.Config, c client.WithWatch, scheme *runtime.Scheme) (volume.Controller, volume.Node) {
	t.Helper()
	f := &fixture{t: t, api: &apiServer{WithWatch: c}}
	f.clear()
	ns := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespace}}
	if err := client.IgnoreAlreadyExists(c.Create(t.Context(), ns)); err != nil {
		t.Fatal(err)
	}
	f.addPool(volumetest.Pool, "worker-a", string(volumetest.Node), volumetest.PoolSize)
	ctx, cancel := context.WithCancel(context.Background())
	informers, err := cache.New(cfg, cache.Options{Scheme: scheme, ByObject: map[client.Object]cache.ByObject{
		&coordinationv1.Lease{}: {Namespaces: map[string]cache.Config{namespace: {}}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	s, err := cluster.New(ctx, cluster.Config{Client: c, Cache: cluster.FromInformers(informers), DefaultPoolSet: volumetest.Pool})
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- informers.Start(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	eventually(t, "what is there is read", func() bool { return s.Health(t.Context()) == nil })
	f.Service, f.cache = s, &fakeCache{apiServer: f.api}
	return s, newAgent(t, f.api, f.cache, "worker-a", string(volumetest.Node), volumetest.Pool)
}

// clear removes everything of ours, finalizers or not.
func (f *fixture) clear() {
	f.t.Helper()
	var volumes v1alpha1.LocalVolumeList
	var snaps v1alpha1.LocalSnapshotList
	var groups v1alpha1.LocalSnapshotGroupList
	var pools v1alpha1.PoolList
	if err := errors.Join(f.api.List(f.t.Context(), &volumes), f.api.List(f.t.Context(), &snaps), f.api.List(f.t.Context(), &groups),
		f.api.List(f.t.Context(), &pools)); err != nil {
		f.t.Fatal(err)
	}
	all := []client.Object{f.lease("worker-a")}
	for i := range volumes.Items {
		all = append(all, &volumes.Items[i])
	}
	for i := range snaps.Items {
		all = append(all, &snaps.Items[i])
	}
	for i := range groups.Items {
		all = append(all, &groups.Items[i])
	}
	for i := range pools.Items {
		all = append(all, &pools.Items[i])
	}
	for _, obj := range all {
		if len(obj.GetFinalizers()) > 0 {
			none := client.RawPatch("application/merge-patch+json", []byte(`{"metadata":{"finalizers":null}}`))
			if err := client.IgnoreNotFound(f.api.Patch(f.t.Context(), obj, none)); err != nil {
				f.t.Fatal(err)
			}
		}
		if err := client.IgnoreNotFound(f.api.Delete(f.t.Context(), obj)); err != nil {
			f.t.Fatal(err)
		}
	}
}

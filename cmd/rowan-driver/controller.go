package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/spf13/pflag"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/log"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/driver"
	"github.com/rowan-csi/rowan/pkg/driver/consistency"
	"github.com/rowan-csi/rowan/pkg/driver/siblings"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/cluster"
)

// controllerOptions are --controller's.
type controllerOptions struct {
	shared         *sharedOptions
	defaultPoolSet string
}

func (o *controllerOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.defaultPoolSet, "default-pool-set", "default", "--controller: the PoolSet of volumes whose storage class names none")
}

func (o *controllerOptions) check() error {
	if o.defaultPoolSet == "" {
		return errors.New("--default-pool-set is empty: name the PoolSet that volumes go to whose storage class names none")
	}
	return nil
}

func (o *controllerOptions) run(ctx context.Context) error {
	if err := o.check(); err != nil {
		return err
	}
	logger := klog.FromContext(ctx)
	log.SetLogger(logger) // controller-runtime's
	cfg, namespace, err := o.shared.kube()
	if err != nil {
		return err
	}
	scheme, err := kinds()
	if err != nil {
		return err
	}
	live, err := client.New(cfg, client.Options{Scheme: scheme})
	if err != nil {
		return fmt.Errorf("reach the Kubernetes API: %w", err)
	}
	objects, err := cache.New(cfg, cache.Options{
		Scheme: scheme, Mapper: live.RESTMapper(), DefaultTransform: cache.TransformStripManagedFields(), ReaderFailOnMissingInformer: true,
		ByObject: map[client.Object]cache.ByObject{&coordinationv1.Lease{}: {Namespaces: map[string]cache.Config{namespace: {}}}},
	})
	if err != nil {
		return fmt.Errorf("reach the Kubernetes API: %w", err)
	}
	// The cache outlives the signal to end: calls under way are answered from it.
	cacheCtx, stopCache := context.WithCancel(context.WithoutCancel(ctx))
	defer stopCache()
	backend, err := cluster.New(cacheCtx, cluster.Config{Client: live, Cache: cluster.FromInformers(objects), DefaultPoolSet: o.defaultPoolSet})
	if err != nil {
		return fmt.Errorf("%w (are Rowan's custom resource definitions installed?)", err)
	}
	ended := make(chan error, 1)
	go func() { ended <- objects.Start(cacheCtx) }()

	recorder, stopEvents, err := recordEvents(cacheCtx, cfg, scheme)
	if err != nil {
		return err
	}
	defer stopEvents()
	service := volume.OpenController(backend)
	listener, err := driver.Listen(o.shared.endpoint)
	if err != nil {
		return err
	}
	server := driver.NewServer(logger, driver.Services{
		Identity:   driver.NewIdentity(version, true, service.Health),
		Controller: consistency.New(siblings.New(driver.NewController(service, driver.ParamPoolSet), live, recorder), live),
		Group:      consistency.NewGroup(driver.NewGroupController(service), live),
		Observe:    measure,
	})
	stopHTTP, err := o.shared.serveHTTP(service.Health)
	if err != nil {
		return errors.Join(err, listener.Close())
	}
	logger.Info("Serving", "driver", driver.Name, "version", version, "endpoint", o.shared.endpoint, "defaultPoolSet", o.defaultPoolSet,
		"leasesIn", namespace)
	err = driver.Serve(ctx, listener, server, grace)
	stopCache()
	logger.Info("Stopped")
	return errors.Join(err, stopHTTP(), <-ended)
}

// recordEvents makes who tells people of their claims. What was told just before the end may get lost: it is a help.
func recordEvents(ctx context.Context, cfg *rest.Config, scheme *runtime.Scheme) (recorder events.EventRecorder, stop func(), err error) {
	set, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return nil, nil, fmt.Errorf("reach the Kubernetes API: %w", err)
	}
	broadcaster := events.NewBroadcaster(&events.EventSinkImpl{Interface: set.EventsV1()})
	if err := broadcaster.StartRecordingToSinkWithContext(ctx); err != nil {
		return nil, nil, fmt.Errorf("record events: %w", err)
	}
	return broadcaster.NewRecorder(scheme, "rowan-driver"), broadcaster.Shutdown, nil
}

func kinds() (*runtime.Scheme, error) {
	scheme := runtime.NewScheme()
	return scheme, errors.Join(v1alpha1.AddToScheme(scheme), coordinationv1.AddToScheme(scheme),
		corev1.AddToScheme(scheme), storagev1.AddToScheme(scheme), snapshotv1.AddToScheme(scheme))
}

// namespaceFile is where a pod finds the namespace of its service account.
const namespaceFile = "/var/run/secrets/kubernetes.io/serviceaccount/namespace"

// kube is how to reach the Kubernetes API, and the namespace of the release.
func (o *sharedOptions) kube() (*rest.Config, string, error) {
	cfg, err := clientcmd.BuildConfigFromFlags("", o.kubeconfig)
	if err != nil {
		return nil, "", fmt.Errorf("reach the Kubernetes API: %w", err)
	}
	cfg.QPS, cfg.Burst = o.kubeQPS, o.kubeBurst
	cfg.UserAgent = "rowan-driver/" + version
	namespace := o.namespace
	if namespace == "" {
		b, err := os.ReadFile(namespaceFile)
		if err != nil {
			return nil, "", fmt.Errorf("--namespace is empty, and there is no pod's namespace to take: %w", err)
		}
		namespace = strings.TrimSpace(string(b))
	}
	return cfg, namespace, nil
}

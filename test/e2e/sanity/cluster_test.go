package sanity

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	rowanv1alpha1 "github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/driver"
	"github.com/rowan-csi/rowan/test/e2e/framework"
)

var (
	options    framework.Options
	kubeletDir = flag.String("kubelet-dir", "/var/lib/kubelet", "the kubelets' folder on the cluster's nodes")
)

func init() {
	flag.StringVar(&options.Kubeconfig, "kubeconfig", "", "test the driver in this cluster, with -node-exec")
	flag.StringVar(&options.NodeExec, "node-exec", "", "a command that runs what follows inside the node {node}")
	flag.StringVar(&options.Namespace, "rowan-namespace", "rowan-system", "where Rowan is installed")
}

// poolSet is of one node: the suite calls one node plugin, so all its volumes have to be there.
const poolSet = "csi-sanity"

// TestSanityInCluster is the suite over the sockets of the controller and of one node's plugin of a cluster. Nothing else may use its volumes meanwhile.
func TestSanityInCluster(t *testing.T) {
	if options.Kubeconfig == "" || options.NodeExec == "" {
		t.Skip("needs a cluster: make e2e-sanity")
	}
	c, err := framework.Open(options)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 40*time.Minute)
	defer cancel()
	controller := controllerPod(ctx, t, c)
	node := controller.Spec.NodeName
	makePoolSet(t, c, node)
	j := join{
		controller: dial(t, c, node, path.Join(*kubeletDir, "pods", string(controller.UID), "volumes/kubernetes.io~empty-dir/csi/csi.sock")),
		node:       dial(t, c, node, path.Join(*kubeletDir, "plugins", driver.Name, "csi.sock")),
	}
	address := j.serve(t)

	dir := path.Join(*kubeletDir, "plugins", driver.Name, "sanity")
	if _, err := c.OnNode(ctx, node, "mkdir", "-p", dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if _, err := c.OnNode(context.Background(), node, "rmdir", dir); err != nil {
			t.Error(err)
		}
	})
	for _, kind := range []string{"mount", "block"} {
		cfg := sanity.NewTestConfig()
		cfg.Address = address
		cfg.TargetPath, cfg.StagingPath = path.Join(dir, kind+"-target"), path.Join(dir, kind+"-staging")
		cfg.CreateTargetDir = func(p string) (string, error) { _, err := c.OnNode(ctx, node, "mkdir", p); return p, err }
		cfg.CreateStagingDir = cfg.CreateTargetDir
		cfg.RemoveTargetPath = func(p string) error { _, err := c.OnNode(ctx, node, "rmdir", p); return err }
		cfg.RemoveStagingPath = cfg.RemoveTargetPath
		cfg.CheckPath = func(p string) (sanity.PathKind, error) { return kindOf(ctx, c, node, p) }
		cfg.TestVolumeSize, cfg.TestVolumeExpandSize = gi, 2*gi
		cfg.TestVolumeAccessType = kind
		cfg.TestVolumeParameters = map[string]string{string(driver.ParamPoolSet): poolSet}
		cfg.TestVolumeMutableParameters = map[string]string{"mode": "cow"}
		ginkgo.Describe(kind, func() { sanity.GinkgoTest(&cfg) })
	}
	runSuite(t, 35*time.Minute)
	nothingLeft(ctx, t, c)
}

// controllerPod is a pod of the CSI controller that is ready, whichever of the replicas: all of them serve.
func controllerPod(ctx context.Context, t *testing.T, c *framework.Cluster) *corev1.Pod {
	t.Helper()
	var pods corev1.PodList
	if err := c.List(ctx, &pods, client.InNamespace(c.Namespace), client.MatchingLabels{"app.kubernetes.io/component": "csi-controller"}); err != nil {
		t.Fatal(err)
	}
	for i, p := range pods.Items {
		if slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
			return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
		}) {
			return &pods.Items[i]
		}
	}
	t.Fatalf("none of %d pods of the CSI controller is ready", len(pods.Items))
	return nil
}

// makePoolSet makes the pool and gives it up when the test ends.
func makePoolSet(t *testing.T, c *framework.Cluster, node string) {
	t.Helper()
	s := &rowanv1alpha1.PoolSet{
		ObjectMeta: metav1.ObjectMeta{Name: poolSet},
		Spec: rowanv1alpha1.PoolSetSpec{
			NodeSelector: &metav1.LabelSelector{MatchLabels: map[string]string{corev1.LabelHostname: node}},
			Template: rowanv1alpha1.PoolTemplate{
				OvercommitPercent: 2000, // the suite makes many volumes and writes little
				Members: []rowanv1alpha1.Member{{Directory: &rowanv1alpha1.DirectoryMember{
					Path: "/var/lib/rowan/csi-sanity", Size: ptr.To(resource.MustParse("4Gi")), StopGrowthPercent: 95,
				}}},
			},
		},
	}
	if err := c.Create(t.Context(), s); err != nil {
		t.Fatal(err)
	}
	p := &rowanv1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: poolSet + "-" + node}}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		absent := client.RawPatch("application/merge-patch+json", []byte(`{"spec":{"desiredState":"Absent"}}`))
		if err := errors.Join(c.Delete(ctx, s), c.Patch(ctx, p, absent), c.Delete(ctx, p)); err != nil {
			t.Error(err)
		}
	})
	framework.Until(t, c, p, framework.Wait, func(p *rowanv1alpha1.Pool) error {
		if ready := meta.FindStatusCondition(p.Status.Conditions, rowanv1alpha1.Ready); ready == nil || ready.Status != metav1.ConditionTrue {
			return fmt.Errorf("ready: %+v", ready)
		}
		return nil
	})
}

// dial connects to a plugin's socket on a node.
func dial(t *testing.T, c *framework.Cluster, node, socket string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(func(ctx context.Context, socket string) (net.Conn, error) { return c.DialOnNode(ctx, node, socket) }))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

// kindOf says what is at a path of a node.
func kindOf(ctx context.Context, c *framework.Cluster, node, p string) (sanity.PathKind, error) {
	out, err := c.OnNode(ctx, node, "sh", "-c", `if [ -d "$0" ]; then echo dir; elif [ -f "$0" ]; then echo file; elif [ -e "$0" ]; then echo other; else echo none; fi`, p)
	if err != nil {
		return "", err
	}
	switch strings.TrimSpace(out) {
	case "dir":
		return sanity.PathIsDir, nil
	case "file":
		return sanity.PathIsFile, nil
	case "none":
		return sanity.PathIsNotFound, nil
	}
	return sanity.PathIsOther, nil
}

// nothingLeft waits until the suite's volumes, snapshots and groups are gone.
func nothingLeft(ctx context.Context, t *testing.T, c *framework.Cluster) {
	t.Helper()
	for _, list := range []client.ObjectList{
		&rowanv1alpha1.LocalVolumeList{}, &rowanv1alpha1.LocalSnapshotList{}, &rowanv1alpha1.LocalSnapshotGroupList{},
	} {
		if err := c.List(ctx, list); err != nil {
			t.Fatal(err)
		}
		objects, err := meta.ExtractList(list)
		if err != nil {
			t.Fatal(err)
		}
		for _, o := range objects {
			t.Errorf("the suite left %T %s", o, o.(client.Object).GetName())
		}
	}
}

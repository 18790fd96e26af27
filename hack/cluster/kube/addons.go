package kube

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/rowan-csi/rowan/hack/cluster/build"
)

//go:embed coredns.yaml
var corednsManifest string

//go:embed snapshot-controller.yaml
var snapshotControllerManifest string

// installAddons installs what a Kubernetes is expected to have: cluster DNS and, where asked for, the snapshot API and its controller.
func (c *Cluster) installAddons(ctx context.Context, snapshots bool) error {
	manifest := strings.NewReplacer("@IMAGE@", build.CoreDNS, "@ADDRESS@", dnsIP).Replace(corednsManifest)
	deployments := []string{"coredns"}
	if snapshots {
		manifest += "---\n" + strings.ReplaceAll(snapshotControllerManifest, "@IMAGE@", build.SnapshotController)
		deployments = append(deployments, "snapshot-controller")
		if _, err := run(c.Kubectl(ctx, "apply", "--server-side", "--filename", c.cache.Manifests())); err != nil {
			return fmt.Errorf("install the snapshot API: %w", err)
		}
		if _, err := run(c.Kubectl(ctx, "wait", "--for=condition=Established", "--timeout=60s", "--filename", c.cache.Manifests())); err != nil {
			return fmt.Errorf("wait for the snapshot API: %w", err)
		}
	}
	file := c.path("addons.yaml")
	if err := os.WriteFile(file, []byte(manifest), 0o644); err != nil {
		return err
	}
	if _, err := run(c.Kubectl(ctx, "apply", "--server-side", "--filename", file)); err != nil {
		return fmt.Errorf("install %s: %w", filepath.Base(file), err)
	}
	for _, d := range deployments {
		if _, err := run(c.Kubectl(ctx, "--namespace=kube-system", "rollout", "status", "--timeout=120s", "deployment/"+d)); err != nil {
			pods, _ := run(c.Kubectl(ctx, "--namespace=kube-system", "describe", "pods"))
			return fmt.Errorf("wait for %s: %w\n%s", d, err, pods)
		}
	}
	return nil
}

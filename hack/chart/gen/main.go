// Command gen makes the files of charts/rowan and deploy that are made from others: see package chart. Its argument is the folder of the module.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"sigs.k8s.io/yaml"

	"github.com/rowan-csi/rowan/hack/chart"
)

// snapshotClient is the module whose version is that of the snapshot definitions.
const snapshotClient = "github.com/kubernetes-csi/external-snapshotter/client/v8"

const header = `# Made from charts/rowan by make generate; do not edit. For clusters without Helm:
#
#   kubectl create namespace rowan
#   kubectl apply --server-side -f deploy/rowan.yaml
#   kubectl wait --for=condition=Established crd/poolsets.rowan.storage
#   kubectl apply --server-side -f deploy/poolset.yaml
#
# The cluster must have the snapshot definitions and the snapshot-controller.
`

func main() {
	if len(os.Args) != 2 {
		fmt.Fprintln(os.Stderr, "usage: gen FOLDER-OF-THE-MODULE")
		os.Exit(2)
	}
	if err := generate(os.Args[1]); err != nil {
		fmt.Fprintln(os.Stderr, "hack/chart/gen:", err)
		os.Exit(1)
	}
}

func generate(root string) error {
	dir := filepath.Join(root, "charts", "rowan")
	if err := definitions(root, dir); err != nil {
		return fmt.Errorf("copy definitions: %w", err)
	}
	text, err := os.ReadFile(filepath.Join(dir, "values.yaml"))
	if err != nil {
		return err
	}
	values, err := chart.ParseValues(text)
	if err != nil {
		return err
	}
	schema, err := chart.Schema(values)
	if err != nil {
		return err
	}
	// Before the chart is loaded: it is part of it.
	if err := os.WriteFile(filepath.Join(dir, "values.schema.json"), schema, 0o644); err != nil {
		return err
	}
	c, err := chart.Load(dir)
	if err != nil {
		return err
	}
	readme, err := chart.Readme(c, values)
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "README.md"), []byte(readme), 0o644); err != nil {
		return err
	}
	noCheck := map[string]any{"uninstallCheck": map[string]any{"enabled": false}} // a hook of Helm's
	r, err := chart.Render(c, chart.Options{APIs: []string{chart.SnapshotAPI}, Values: noCheck})
	if err != nil {
		return err
	}
	return deploy(filepath.Join(root, "deploy"), r)
}

// definitions copies the custom resource definitions.
func definitions(root, dir string) error {
	list := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", snapshotClient)
	list.Stderr = os.Stderr
	out, err := list.Output()
	if err != nil {
		return fmt.Errorf("find module %s: %w", snapshotClient, err)
	}
	snapshots := filepath.Join(strings.TrimSpace(string(out)), "config", "crd")
	return errors.Join(
		copyFiles(filepath.Join(root, "pkg", "apis", "v1alpha1", "crds"), "*.yaml", filepath.Join(dir, "files", "crds")),
		copyFiles(snapshots, "*snapshot.storage.k8s.io_*.yaml", filepath.Join(dir, "files", "snapshot-crds")))
}

// copyFiles makes the folder to hold the files that match, and no others.
func copyFiles(from, pattern, to string) error {
	names, err := filepath.Glob(filepath.Join(from, pattern))
	if err != nil || len(names) == 0 {
		return errors.Join(err, fmt.Errorf("there is no %s in %s", pattern, from))
	}
	if err := os.RemoveAll(to); err != nil {
		return err
	}
	if err := os.MkdirAll(to, 0o755); err != nil {
		return err
	}
	for _, name := range names {
		text, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(to, filepath.Base(name)), text, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// deploy writes the objects, and apart from them the PoolSets, which the setup hook's ConfigMap has.
func deploy(dir string, r chart.Rendered) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	var objects, sets strings.Builder
	objects.WriteString(header)
	sets.WriteString("# Made from charts/rowan by make generate; do not edit. See rowan.yaml.\n")
	for _, text := range strings.Split(r.Objects, "---\n")[1:] {
		var o struct {
			Kind     string
			Metadata struct{ Name string }
			Data     map[string]string
		}
		if err := yaml.Unmarshal([]byte(text), &o); err != nil {
			return err
		}
		switch {
		case o.Metadata.Name != "rowan-setup": // which are the hook's own
			objects.WriteString("---\n" + text)
		case o.Kind == "ConfigMap":
			for _, set := range o.Data {
				sets.WriteString("---\n" + strings.TrimSpace(set) + "\n")
			}
		}
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "rowan.yaml"), []byte(objects.String()), 0o644),
		os.WriteFile(filepath.Join(dir, "poolset.yaml"), []byte(sets.String()), 0o644))
}

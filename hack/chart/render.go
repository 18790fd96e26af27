package chart

import (
	"fmt"
	"path"
	"strings"

	helmchart "helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	"helm.sh/helm/v3/pkg/releaseutil"
)

const (
	// Oldest and Newest are the versions of Kubernetes that the chart is for.
	Oldest = "v1.32.0"
	Newest = "v1.36.3"
	// SnapshotAPI is what a cluster with the snapshot definitions has.
	SnapshotAPI = "snapshot.storage.k8s.io/v1"
	// GroupSnapshotAPI is what one has with those of groups.
	GroupSnapshotAPI = "groupsnapshot.storage.k8s.io/v1"
	notes            = "NOTES.txt"
)

// Options say what it is rendered for.
type Options struct {
	Values    map[string]any // over values.yaml
	Version   string         // of Kubernetes; "": Newest
	APIs      []string       // besides Kubernetes' own
	Namespace string         // "": rowan
}

// Rendered is what Helm would install.
type Rendered struct {
	Objects string // in the order of installation
	Hooks   string
	Notes   string
}

// Load reads the chart in a folder.
func Load(dir string) (*helmchart.Chart, error) {
	c, err := loader.LoadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("load chart: %w", err)
	}
	return c, nil
}

// Render renders a chart as `helm install rowan` does. Values are checked against the chart's schema.
func Render(c *helmchart.Chart, o Options) (Rendered, error) {
	caps := chartutil.DefaultCapabilities.Copy()
	if o.Version == "" {
		o.Version = Newest
	}
	version, err := chartutil.ParseKubeVersion(o.Version)
	if err != nil {
		return Rendered{}, fmt.Errorf("version of Kubernetes: %w", err)
	}
	caps.KubeVersion = *version
	caps.APIVersions = append(caps.APIVersions, o.APIs...)
	if o.Namespace == "" {
		o.Namespace = "rowan"
	}
	release := chartutil.ReleaseOptions{Name: "rowan", Namespace: o.Namespace, Revision: 1, IsInstall: true}
	values, err := chartutil.ToRenderValues(c, o.Values, release, caps)
	if err != nil {
		return Rendered{}, fmt.Errorf("take the values: %w", err)
	}
	files, err := engine.Render(c, values)
	if err != nil {
		return Rendered{}, fmt.Errorf("render chart: %w", err)
	}
	var r Rendered
	for name := range files {
		if path.Base(name) == notes {
			r.Notes = files[name]
			delete(files, name)
		}
	}
	hooks, manifests, err := releaseutil.SortManifests(files, caps.APIVersions, releaseutil.InstallOrder)
	if err != nil {
		return Rendered{}, fmt.Errorf("sort what was rendered: %w", err)
	}
	var objects, hooked strings.Builder
	for _, m := range manifests {
		document(&objects, m.Content)
	}
	for _, h := range hooks {
		document(&hooked, h.Manifest)
	}
	r.Objects, r.Hooks = objects.String(), hooked.String()
	return r, nil
}

func document(b *strings.Builder, text string) {
	b.WriteString("---\n" + strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(text), "---")) + "\n")
}

package chart

import (
	"encoding/json"
	"fmt"
	"strings"

	helmchart "helm.sh/helm/v3/pkg/chart"
)

// Readme is the chart's README.md.
func Readme(c *helmchart.Chart, values []Value) (string, error) {
	var b strings.Builder
	fmt.Fprintf(&b, `# %s

<!-- Made from Chart.yaml and the comments in values.yaml by make generate; do not edit. -->

%s.

%s

Chart %s, Rowan %s, Kubernetes %s to %s.

## Values

| value | default | |
|---|---|---|
`, c.Name(), c.Metadata.Description, readmeIntro, c.Metadata.Version, c.Metadata.AppVersion, minor(Oldest), minor(Newest))
	if err := rows(&b, values, ""); err != nil {
		return "", err
	}
	return b.String(), nil
}

const readmeIntro = "```console\n" + `$ helm install rowan charts/rowan --namespace rowan --create-namespace
` + "```" + `

It makes a pool in a folder of every worker's root file system, and StorageClasses for it. Requirements, pools on disks of their own, upgrades, private
registries and how to uninstall are in [docs/install.md](../../docs/install.md).`

func minor(version string) string {
	parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
	return parts[0] + "." + parts[1]
}

func rows(b *strings.Builder, values []Value, at string) error {
	for _, v := range values {
		name := strings.TrimPrefix(at+"."+v.Name, ".")
		if len(v.Children) > 0 {
			if v.Comment != "" {
				fmt.Fprintf(b, "| **%s** | | %s |\n", name, cell(v.Comment))
			}
			if err := rows(b, v.Children, name); err != nil {
				return err
			}
			continue
		}
		text, err := json.Marshal(v.Default)
		if err != nil {
			return fmt.Errorf("write the default of %s: %w", name, err)
		}
		shown := "`" + string(text) + "`"
		if len(text) > 120 {
			shown = "see [values.yaml](values.yaml)"
		}
		fmt.Fprintf(b, "| %s | %s | %s |\n", name, cell(shown), cell(v.Comment))
	}
	return nil
}

func cell(text string) string { return strings.ReplaceAll(text, "|", `\|`) }

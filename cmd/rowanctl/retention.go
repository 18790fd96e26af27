package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"sigs.k8s.io/yaml"

	"github.com/rowan-csi/rowan/pkg/retention"
	"github.com/rowan-csi/rowan/pkg/retention/listing"
	"github.com/rowan-csi/rowan/pkg/retention/report"
)

// maxListing is how much is read of a list or a policy.
const maxListing = 1 << 30

func (a *app) retentionCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "retention", Short: "Try a snapshot policy without a cluster"}
	cmd.AddCommand(a.retentionPlan())
	return cmd
}

// planFlags are retention plan's flags.
type planFlags struct{ policy, now, policyUID, html string }

func (a *app) retentionPlan() *cobra.Command {
	var f planFlags
	cmd := &cobra.Command{
		Use:   "plan LIST",
		Short: "Say what a policy would keep and prune of a list of snapshots, and why",
		Long: "Say what a policy would keep and prune of a list of snapshots, and why. Nothing is changed, and no engine and no cluster is asked.\n\n" +
			"LIST is a file, or - for standard input. It is what kubectl prints of VolumeSnapshots (and VolumeGroupSnapshots; with the PVCs and\n" +
			"VolumeSnapshotContents in the same list more is known), or a list in rowanctl's own form; docs/retention.md has both. The policy is a\n" +
			"SnapshotPolicy, or only its spec; a spec without selector means every snapshot of the list. A snapshot is the policy's if it is\n" +
			"labelled with its UID; where no UID is known, all are taken to be.",
		Example: "  kubectl get volumesnapshots,pvc -A -o json | rowanctl retention plan - --policy policy.yaml --html plan.html\n" +
			"  rowanctl retention plan snapshots.json --policy policy.yaml --now 2026-06-01T00:00:00Z -o json",
		Args: names("LIST"),
		RunE: func(cmd *cobra.Command, args []string) error { return a.plan(cmd.InOrStdin(), args[0], f) },
	}
	cmd.Flags().StringVarP(&f.policy, "policy", "f", "", "file of the policy, in YAML or JSON")
	cmd.Flags().StringVar(&f.policyUID, "policy-uid", "", "the policy's UID, if the file does not say (its snapshots' label "+retention.LabelPolicy+")")
	cmd.Flags().StringVar(&f.now, "now", "", "plan as of this time, such as 2026-06-01T00:00:00Z (default: the list's, or now)")
	cmd.Flags().StringVar(&f.html, "html", "", "write the plan as a web page to this file, too")
	return cmd
}

func (a *app) plan(stdin io.Reader, listFile string, f planFlags) error {
	if f.policy == "" {
		return usagef("--policy is missing: name the file of the policy to try")
	}
	policy, err := readPolicy(f.policy)
	if err != nil {
		return err
	}
	data, err := readAll(stdin, listFile)
	if err != nil {
		return err
	}
	list, err := listing.Read(data)
	if err != nil {
		return fmt.Errorf("%s: %w", listFile, err)
	}
	in := retention.Input{Now: list.Now, PolicyUID: policy.uid, PolicyName: policy.name, Snapshots: list.Snapshots, Sources: list.Sources,
		Pools: list.Pools}
	if in.Now.IsZero() {
		in.Now = time.Now()
	}
	if f.now != "" {
		if in.Now, err = time.Parse(time.RFC3339, f.now); err != nil {
			return usagef("--now %q: want a time such as 2026-06-01T00:00:00Z", f.now)
		}
	}
	if f.policyUID != "" {
		in.PolicyUID = f.policyUID
	}
	all := in.PolicyUID == ""
	if all { // whatever they are labelled with
		in.PolicyUID = "all"
		for i := range in.Snapshots {
			in.Snapshots[i].Policy = in.PolicyUID
		}
	}
	plan := policy.rules.Plan(in)
	v := viewPlan(&plan, &in, policy.zone, all)
	if f.html != "" {
		page := report.Input{Title: policy.title(), Policy: policy.text, Now: in.Now, Zone: policy.zone, Names: v.names, Plan: &plan}
		if err := writePage(f.html, page); err != nil {
			return err
		}
	}
	return a.print(v)
}

// policyFile is a policy that was read.
type policyFile struct {
	rules           *retention.Rules
	zone            *time.Location
	uid, name, text string
	object          string
}

func (p *policyFile) title() string {
	if p.object == "" {
		return "Plan of a snapshot policy"
	}
	return "Plan of " + p.object
}

// readPolicy reads a policy object, or its spec alone.
func readPolicy(file string) (*policyFile, error) {
	text, err := readAll(nil, file)
	if err != nil {
		return nil, err
	}
	data, err := yaml.YAMLToJSONStrict(text)
	if err != nil {
		return nil, fmt.Errorf("%s: read policy: %w", file, err)
	}
	p := &policyFile{text: string(text)}
	var object struct {
		Kind     string                                `json:"kind"`
		Metadata struct{ Name, Namespace, UID string } `json:"metadata"`
		Spec     json.RawMessage                       `json:"spec"`
		Selector *struct{}                             `json:"selector"`
	}
	if err := json.Unmarshal(data, &object); err != nil {
		return nil, fmt.Errorf("%s: read policy: %w", file, err)
	}
	switch m := object.Metadata; object.Kind {
	case "":
	case "SnapshotPolicy", "ClusterSnapshotPolicy":
		if len(object.Spec) == 0 {
			return nil, fmt.Errorf("%s: read policy: it has no spec", file)
		}
		data, p.uid, p.object = object.Spec, m.UID, object.Kind+" "+m.Name
		p.name = object.Kind + "/" + m.Namespace + "/" + m.Name
	default:
		return nil, fmt.Errorf("%s: read policy: it is a %s; a SnapshotPolicy, a ClusterSnapshotPolicy or a spec is wanted", file, object.Kind)
	}
	var cluster retention.ClusterPolicy
	if object.Kind == "ClusterSnapshotPolicy" {
		cluster, err = retention.DecodeClusterPolicy(data)
	} else {
		cluster.Policy, err = retention.DecodePolicy(data)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	spec := cluster.Policy // the list's snapshots are taken to be of namespaces that are chosen
	if object.Kind == "" && object.Selector == nil {
		spec.Selector.MatchAll = true
	}
	rules, errs := retention.New(spec)
	if errs != nil {
		return nil, fmt.Errorf("%s: %w", file, policyErrors(errs))
	}
	p.rules = rules
	p.zone, err = time.LoadLocation(spec.TimeZone)
	return p, err
}

// policyErrors puts each on a line.
func policyErrors(errs retention.FieldErrors) error {
	var lines strings.Builder
	for _, e := range errs {
		lines.WriteString("\n  " + e.Error())
	}
	return fmt.Errorf("%w:%s", retention.ErrInvalid, lines.String())
}

func readAll(stdin io.Reader, name string) ([]byte, error) {
	r := stdin
	if name != "-" || stdin == nil {
		f, err := os.Open(name)
		if err != nil {
			return nil, err
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, maxListing+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", name, err)
	}
	if len(data) > maxListing {
		return nil, fmt.Errorf("read %s: it is larger than %d bytes", name, maxListing)
	}
	return data, nil
}

func writePage(name string, in report.Input) (err error) {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return report.Render(f, in)
}

package chart

import (
	"maps"
	"strings"
	"testing"

	"github.com/google/cel-go/cel"
	"github.com/google/cel-go/ext"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	"sigs.k8s.io/yaml"
)

// policy is a rendered policy.
func policy(t *testing.T, name string) (p admissionv1.ValidatingAdmissionPolicy) {
	t.Helper()
	r, err := Render(load(t), Options{Values: map[string]any{}})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range documents(r.Objects) {
		if !strings.Contains(d, "kind: ValidatingAdmissionPolicy\n") || !strings.Contains(d, "name: "+name+"\n") {
			continue
		}
		if err := yaml.Unmarshal([]byte(d), &p); err != nil {
			t.Fatal(err)
		}
		return p
	}
	t.Fatalf("no policy %s", name)
	return p
}

// allows evaluates a policy's validations as the API server does, and answers the message of the first that is false.
func allows(t *testing.T, p admissionv1.ValidatingAdmissionPolicy, old, now map[string]any) (refusal string) {
	t.Helper()
	env, err := cel.NewEnv(cel.OptionalTypes(), ext.Strings(), cel.Variable("object", cel.DynType), cel.Variable("oldObject", cel.DynType),
		cel.Variable("request", cel.DynType), cel.Variable("variables", cel.DynType))
	if err != nil {
		t.Fatal(err)
	}
	for _, v := range p.Spec.Validations {
		ast, issues := env.Compile(v.Expression)
		if issues.Err() != nil {
			t.Fatalf("%s: %v", v.Expression, issues.Err())
		}
		program, err := env.Program(ast)
		if err != nil {
			t.Fatal(err)
		}
		got, _, err := program.Eval(map[string]any{
			"object": now, "oldObject": old, "request": map[string]any{"operation": "UPDATE"},
			"variables": map[string]any{"node": "node-1", "lease": "rowan-agent-node-1"},
		})
		if err != nil {
			t.Fatalf("%s: %v", v.Expression, err)
		}
		if got.Value() != true {
			return v.Message
		}
	}
	return ""
}

// TestNodePolicy is what an agent may do to its Node, and what it may not.
func TestNodePolicy(t *testing.T) {
	p := policy(t, "rowan-node-taint")
	ours, other := map[string]any{"key": "rowan.storage/not-ready"}, map[string]any{"key": "other"}
	node := func(labels map[string]any, taints ...any) map[string]any {
		return map[string]any{"metadata": map[string]any{"name": "node-1", "labels": labels}, "spec": map[string]any{"taints": taints}}
	}
	labels := map[string]any{"zone": "a", "topology.rowan.storage/node": "node-1"}
	with := func(key, value string) map[string]any {
		l := maps.Clone(labels)
		if l[key] = value; value == "-" {
			delete(l, key)
		}
		return l
	}
	for _, c := range []struct {
		name string
		now  map[string]any
		ok   bool
	}{
		{"nothing", node(labels, ours, other), true},
		{"the taint", node(labels, other), true},
		{"the label", node(with("topology.rowan.storage/node", "node-9"), other), true},
		{"another taint", node(labels), false},
		{"another label", node(with("zone", "b"), other), false},
		{"a new label", node(with("node-role.kubernetes.io/control-plane", ""), other), false},
		{"a label less", node(with("zone", "-"), other), false},
		{"another node", map[string]any{"metadata": map[string]any{"name": "node-2", "labels": labels}, "spec": map[string]any{"taints": []any{other}}}, false},
	} {
		if refusal := allows(t, p, node(labels, ours, other), c.now); (refusal == "") != c.ok {
			t.Errorf("%s: %q", c.name, refusal)
		}
	}
	if refusal := allows(t, p, node(labels, other), node(with("topology.rowan.storage/node", "node-9"), other)); refusal != "" {
		t.Errorf("the label, without a taint: %q", refusal)
	}
}

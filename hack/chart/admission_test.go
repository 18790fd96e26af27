package chart

import (
	"context"
	"strings"
	"testing"
	"time"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apiserver/pkg/admission"
	"k8s.io/apiserver/pkg/admission/plugin/policy/validating"
	"k8s.io/apiserver/pkg/authentication/user"
	"k8s.io/apiserver/pkg/authorization/authorizer"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes/fake"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// admit is the API server's own admission plugin with the chart's policies.
func admit(t *testing.T) func(admission.Attributes) error {
	t.Helper()
	r, err := Render(load(t), Options{})
	if err != nil {
		t.Fatal(err)
	}
	decode := strictDecoder(t)
	var objects []runtime.Object
	policies := 0
	for _, d := range documents(r.Objects) {
		if !strings.Contains(d, "kind: ValidatingAdmissionPolicy") {
			continue
		}
		o, _, err := decode([]byte(d))
		if err != nil {
			t.Fatal(err)
		}
		if p, ok := o.(*admissionv1.ValidatingAdmissionPolicy); ok {
			policies++
			defaultPolicy(p)
		}
		objects = append(objects, o)
	}
	objects = append(objects, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: "rowan"}})
	client := fake.NewClientset(objects...)
	factory := informers.NewSharedInformerFactory(client, 0)
	plugin, err := validating.NewPlugin(nil)
	if err != nil {
		t.Fatal(err)
	}
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		t.Fatal(err)
	}
	plugin.SetExternalKubeClientSet(client)
	plugin.SetExternalKubeInformerFactory(factory)
	plugin.SetDynamicClient(dynamicfake.NewSimpleDynamicClient(scheme))
	plugin.SetRESTMapper(meta.NewDefaultRESTMapper(nil))
	plugin.SetDrainedNotification(t.Context().Done())
	plugin.SetAuthorizer(authorizer.AuthorizerFunc(func(context.Context, authorizer.Attributes) (authorizer.Decision, string, error) {
		return authorizer.DecisionNoOpinion, "", nil
	}))
	if err := plugin.ValidateInitialization(); err != nil {
		t.Fatal(err)
	}
	factory.Start(t.Context().Done())
	factory.WaitForCacheSync(t.Context().Done())
	validate := func(a admission.Attributes) error {
		return plugin.Validate(t.Context(), a, admission.NewObjectInterfacesFromScheme(scheme))
	}
	// Policies are taken up in the background: all are there when each has refused something.
	deadline := time.Now().Add(time.Minute)
	for _, forbidden := range []request{
		onPool("node-2", "status"), onLease("other"), onNode("node-2", func(*corev1.Node) {}),
	} {
		for err := error(nil); err == nil || !strings.Contains(err.Error(), "a node's agent"); err = validate(forbidden.attributes(t)) {
			if time.Now().After(deadline) {
				t.Fatalf("the %d policies were not all taken up within a minute", policies)
			}
		}
	}
	return validate
}

// defaultPolicy sets what the API server would.
func defaultPolicy(p *admissionv1.ValidatingAdmissionPolicy) {
	all, equivalent := admissionv1.AllScopes, admissionv1.Equivalent
	p.Spec.MatchConstraints.NamespaceSelector, p.Spec.MatchConstraints.ObjectSelector = &metav1.LabelSelector{}, &metav1.LabelSelector{}
	p.Spec.MatchConstraints.MatchPolicy = &equivalent
	for i := range p.Spec.MatchConstraints.ResourceRules {
		p.Spec.MatchConstraints.ResourceRules[i].Scope = &all
	}
}

func pool(on string) runtime.Object {
	return &v1alpha1.Pool{
		TypeMeta:   metav1.TypeMeta{APIVersion: v1alpha1.GroupVersion.String(), Kind: "Pool"},
		ObjectMeta: metav1.ObjectMeta{Name: "default-" + on}, Spec: v1alpha1.PoolSpec{NodeName: on, PoolSet: "default"},
	}
}

func lease(name string) runtime.Object {
	return &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "rowan"}}
}

func node(name string) runtime.Object {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name, Labels: map[string]string{"zone": "a", v1alpha1.TopologyKey: "old"}},
		Spec: corev1.NodeSpec{Taints: []corev1.Taint{
			{Key: "dedicated", Effect: corev1.TaintEffectNoSchedule}, {Key: v1alpha1.TaintNotReady, Effect: corev1.TaintEffectNoSchedule},
		}},
	}
}

// request is one of the agent's account.
type request struct {
	object        runtime.Object
	resource, sub string
	operation     admission.Operation // "": an update
	node          string              // of the token
	who           string              // "": the agent
	change        func(runtime.Object)
}

func (r request) attributes(t *testing.T) admission.Attributes {
	t.Helper()
	kinds := map[string]schema.GroupVersionKind{
		"pools": v1alpha1.GroupVersion.WithKind("Pool"), "leases": coordinationv1.SchemeGroupVersion.WithKind("Lease"),
		"nodes": corev1.SchemeGroupVersion.WithKind("Node"),
	}
	kind := kinds[r.resource]
	before := r.object
	after := before.DeepCopyObject()
	if r.change != nil {
		r.change(after)
	}
	switch r.operation {
	case "":
		r.operation = admission.Update
	case admission.Create:
		before = nil
	case admission.Delete:
		after = nil
	}
	who := &user.DefaultInfo{Name: "system:serviceaccount:rowan:rowan-node"}
	if r.who != "" {
		who.Name = r.who
	}
	if r.node != "" {
		who.Extra = map[string][]string{"authentication.kubernetes.io/node-name": {r.node}}
	}
	o, err := meta.Accessor(r.object)
	if err != nil {
		t.Fatal(err)
	}
	resource := kind.GroupVersion().WithResource(r.resource)
	return admission.NewAttributesRecord(after, before, kind, o.GetNamespace(), o.GetName(), resource, r.sub, r.operation, nil, false, who)
}

// Requests with the token of node-1.
func onPool(on, sub string) request {
	return request{object: pool(on), resource: "pools", sub: sub, node: "node-1"}
}
func onLease(name string) request {
	return request{object: lease(name), resource: "leases", node: "node-1"}
}
func onNode(name string, change func(*corev1.Node)) request {
	return request{object: node(name), resource: "nodes", node: "node-1", change: func(o runtime.Object) { change(o.(*corev1.Node)) }}
}

func (r request) as(operation admission.Operation) request { r.operation = operation; return r }
func (r request) withToken(node string) request            { r.node = node; return r }
func (r request) by(who string) request                    { r.who = who; return r }

func TestAdmission(t *testing.T) {
	validate := admit(t)
	long := strings.Repeat("n", 250)
	untainted := func(n *corev1.Node) { n.Spec.Taints = n.Spec.Taints[:1] }
	label := func(key, value string) func(*corev1.Node) { return func(n *corev1.Node) { n.Labels[key] = value } }
	unlabel := func(key string) func(*corev1.Node) { return func(n *corev1.Node) { delete(n.Labels, key) } }
	for name, tc := range map[string]struct {
		request
		refused string // part of the text; "": it is let through
	}{
		"its node's status":            {onPool("node-1", "status"), ""},
		"another node's status":        {onPool("node-2", "status"), "its own node's objects alone"},
		"a status without a node":      {onPool("node-1", "status").withToken(""), "its own node's objects alone"},
		"nobody's status without node": {onPool("", "status").withToken(""), "its own node's objects alone"},
		"a spec":                       {onPool("node-1", ""), "and nothing else of them"},
		"a new object":                 {onPool("node-1", "").as(admission.Create), "and nothing else of them"},
		"a deletion":                   {onPool("node-1", "").as(admission.Delete), "and nothing else of them"},
		"somebody else's spec":         {onPool("node-1", "").by("system:serviceaccount:rowan:rowan-controller"), ""},

		"its lease":                    {onLease("rowan-agent-node-1"), ""},
		"its new lease":                {onLease("rowan-agent-node-1").as(admission.Create), ""},
		"another's lease":              {onLease("rowan-agent-node-2"), "the lease of its own node alone"},
		"a new lease of another":       {onLease("rowan-agent-node-2").as(admission.Create), "the lease of its own node alone"},
		"a leader's lease":             {onLease("csi-rowan-storage"), "the lease of its own node alone"},
		"a lease without a node":       {onLease("rowan-agent-").withToken(""), "the lease of its own node alone"},
		"the lease of a long name":     {onLease(v1alpha1.AgentLease(long)).withToken(long), ""},
		"a lease of another long name": {onLease("rowan-agent-m" + long[:230]).withToken(long), "the lease of its own node alone"},

		"the taint":            {onNode("node-1", untainted), ""},
		"another node's taint": {onNode("node-2", untainted), "its own Node alone"},
		"another taint":        {onNode("node-1", func(n *corev1.Node) { n.Spec.Taints = nil }), "leaves all others"},
		"a new taint":          {onNode("node-1", func(n *corev1.Node) { n.Spec.Taints[1].Key = "x" }), "leaves all others"},
		"the label":            {onNode("node-1", label(v1alpha1.TopologyKey, "new")), ""},
		"the label goes":       {onNode("node-1", unlabel(v1alpha1.TopologyKey)), "changes no label"},
		"another label":        {onNode("node-1", label("zone", "b")), "changes no label"},
		"a new label":          {onNode("node-1", label("x", "y")), "changes no label"},
		"another label goes":   {onNode("node-1", unlabel("zone")), "changes no label"},
		"an annotation":        {onNode("node-1", func(n *corev1.Node) { n.Annotations = map[string]string{"a": "b"} }), "changes nothing"},
		"cordoned":             {onNode("node-1", func(n *corev1.Node) { n.Spec.Unschedulable = true }), "changes nothing"},
		"the Node's status":    {request{object: node("node-1"), resource: "nodes", sub: "status", node: "node-1"}, "its own Node alone"},
	} {
		t.Run(name, func(t *testing.T) {
			err := validate(tc.attributes(t))
			switch {
			case tc.refused == "" && err != nil:
				t.Error(err)
			case tc.refused != "" && (err == nil || !strings.Contains(err.Error(), tc.refused)):
				t.Errorf("not refused with %q: %v", tc.refused, err)
			}
		})
	}
}

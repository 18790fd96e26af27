package install

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

const poolSet = `apiVersion: rowan.storage/v1alpha1
kind: PoolSet
metadata:
  name: default
spec:
  template:
    members:
      - directory:
          path: /var/lib/rowan/pool
`

func builder(t *testing.T) *fake.ClientBuilder {
	t.Helper()
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{clientgoscheme.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(scheme); err != nil {
			t.Fatal(err)
		}
	}
	return fake.NewClientBuilder().WithScheme(scheme)
}

func folder(files ...string) fstest.MapFS {
	f := fstest.MapFS{}
	for i := 0; i < len(files); i += 2 {
		f[files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
	}
	return f
}

func TestApply(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := builder(t).WithReturnManagedFields().Build()
	other := strings.Replace(poolSet, "name: default", "name: fast", 1)
	for range 2 { // once more changes nothing
		var done []string
		err := Apply(ctx, c, folder("default.yaml", poolSet, "fast.yaml", other), time.Millisecond, func(name string) { done = append(done, name) })
		if err != nil || !slices.Equal(done, []string{"PoolSet default", "PoolSet fast"}) {
			t.Fatal(done, err)
		}
	}
	var got v1alpha1.PoolSet
	if err := c.Get(ctx, client.ObjectKey{Name: "fast"}, &got); err != nil {
		t.Fatal(err)
	}
	if m := got.Spec.Template.Members; len(m) != 1 || m[0].Directory == nil || m[0].Directory.Path != "/var/lib/rowan/pool" {
		t.Errorf("%+v", got.Spec)
	}
	if f := got.ManagedFields; len(f) != 1 || f[0].Manager != FieldManager {
		t.Errorf("field managers: %+v", f)
	}
}

// TestApplyWaits: at the first install the definition is made moments before.
func TestApplyWaits(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	away := 3
	c := builder(t).WithInterceptorFuncs(interceptor.Funcs{
		Apply: func(ctx context.Context, c client.WithWatch, o runtime.ApplyConfiguration, opts ...client.ApplyOption) error {
			if away--; away > 0 {
				return &meta.NoKindMatchError{GroupKind: schema.GroupKind{Group: "rowan.storage", Kind: "PoolSet"}}
			}
			return c.Apply(ctx, o, opts...)
		},
	}).Build()
	done := 0
	if err := Apply(ctx, c, folder("default.yaml", poolSet), time.Millisecond, func(string) { done++ }); err != nil || done != 1 {
		t.Fatal(done, err)
	}
}

func TestApplyRefuses(t *testing.T) {
	kind := schema.GroupResource{Group: "rowan.storage", Resource: "poolsets"}
	for name, tc := range map[string]struct {
		file   string
		answer error
		is     error
		text   string
	}{
		"misspelt field": {file: strings.Replace(poolSet, "members:", "member:", 1), is: ErrFile, text: `unknown field "member"`},
		"other kind":     {file: "apiVersion: v1\nkind: Secret\nmetadata:\n  name: x\n", is: ErrFile, text: "use rowan.storage/v1alpha1"},
		"no name":        {file: strings.Replace(poolSet, "name: default", "labels: {}", 1), is: ErrFile},
		"changed": {file: poolSet, answer: apierrors.NewConflict(kind, "default", errors.New(".spec.template.members")), is: ErrChangedElsewhere,
			text: "put that change into the chart's values"},
		"forbidden": {file: poolSet, answer: apierrors.NewForbidden(kind, "default", errors.New("no")), text: "apply PoolSet default"},
		"invalid":   {file: poolSet, answer: apierrors.NewInvalid(schema.GroupKind{Kind: "PoolSet"}, "default", nil), text: "is invalid"},
	} {
		t.Run(name, func(t *testing.T) {
			calls := 0
			c := builder(t).WithInterceptorFuncs(interceptor.Funcs{
				Apply: func(context.Context, client.WithWatch, runtime.ApplyConfiguration, ...client.ApplyOption) error {
					calls++
					return tc.answer
				},
			}).Build()
			err := Apply(t.Context(), c, folder("default.yaml", tc.file), time.Millisecond, func(string) { t.Error("applied") })
			if err == nil || !strings.HasPrefix(err.Error(), "default.yaml: ") || !strings.Contains(err.Error(), tc.text) || calls > 1 {
				t.Errorf("%d calls: %v", calls, err)
			}
			if tc.is != nil && !errors.Is(err, tc.is) {
				t.Errorf("%v is not %v", err, tc.is)
			}
		})
	}
	if err := Apply(t.Context(), builder(t).Build(), folder("README", "x"), time.Millisecond, nil); err == nil {
		t.Error("no files: no error")
	}
}

// TestApplyTime: when the time is over the error is what was answered last, not that the time is over.
func TestApplyTime(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	c := builder(t).WithInterceptorFuncs(interceptor.Funcs{
		Apply: func(context.Context, client.WithWatch, runtime.ApplyConfiguration, ...client.ApplyOption) error {
			cancel()
			return errors.New("connection refused")
		},
	}).Build()
	err := Apply(ctx, c, folder("default.yaml", poolSet), time.Hour, nil)
	if err == nil || !strings.Contains(err.Error(), "connection refused") {
		t.Error(err)
	}
}

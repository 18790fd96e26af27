package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/wait"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

const (
	// FieldManager is who sets what the values say.
	FieldManager = "rowan-chart"
	// DefaultRetry is how long Apply waits after what may pass by itself.
	DefaultRetry = time.Second
)

var (
	// ErrFile: a file is not one PoolSet.
	ErrFile = errors.New("not a PoolSet")
	// ErrChangedElsewhere: somebody else set a field that the values set, too.
	ErrChangedElsewhere = errors.New("was changed by somebody else as well")
)

// Apply applies the PoolSets in the *.yaml files of files, one in each, until ctx ends. The definition of PoolSet may come while it waits. It goes on with
// the next file after an error and answers all of them; applied is told the name of each that is done.
func Apply(ctx context.Context, c client.Client, files fs.FS, retry time.Duration, applied func(name string)) error {
	names, err := fs.Glob(files, "*.yaml")
	if err != nil {
		return fmt.Errorf("list the files: %w", err)
	}
	if len(names) == 0 {
		return errors.New("apply the PoolSets: there is no *.yaml file: a folder with one PoolSet in each is needed")
	}
	var errs []error
	for _, name := range names {
		set, err := readPoolSet(files, name)
		if err == nil {
			err = applyOne(ctx, c, set, retry)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path.Base(name), err))
			continue
		}
		applied(set.GetName())
	}
	return errors.Join(errs...)
}

// readPoolSet reads it twice: strictly, so that a misspelt field is not silently nothing, and as it stands, so that what is not said is not applied.
func readPoolSet(files fs.FS, name string) (*unstructured.Unstructured, error) {
	text, err := fs.ReadFile(files, name)
	if err != nil {
		return nil, fmt.Errorf("read the PoolSet: %w", err)
	}
	var typed v1alpha1.PoolSet
	if err := yaml.UnmarshalStrict(text, &typed); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	if got, want := typed.GroupVersionKind(), v1alpha1.GroupVersion.WithKind("PoolSet"); got != want || typed.Name == "" {
		return nil, fmt.Errorf("%w: it is %s %q: want %s with a name", ErrFile, got, typed.Name, want)
	}
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(text, &u.Object); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	return u, nil
}

func applyOne(ctx context.Context, c client.Client, set *unstructured.Unstructured, retry time.Duration) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, retry, true, func(ctx context.Context) (bool, error) {
		last = c.Apply(ctx, client.ApplyConfigurationFromUnstructured(set.DeepCopy()), client.FieldOwner(FieldManager))
		switch {
		case last == nil:
			return true, nil
		case apierrors.IsConflict(last):
			return false, fmt.Errorf("PoolSet %s %w: put its change into the chart's value poolSets, or give it up with "+
				"`kubectl apply --server-side --force-conflicts`: %w", set.GetName(), ErrChangedElsewhere, last)
		case apierrors.IsInvalid(last), apierrors.IsBadRequest(last), apierrors.IsForbidden(last), apierrors.IsUnauthorized(last):
			return false, fmt.Errorf("apply PoolSet %s: %w", set.GetName(), last)
		}
		return false, nil // no definition yet, or no API server: both may come
	})
	if err != nil && last != nil && ctx.Err() != nil {
		return fmt.Errorf("apply PoolSet %s, repeated until there was no more time: %w", set.GetName(), last)
	}
	return err
}

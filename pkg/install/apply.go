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
	"k8s.io/apimachinery/pkg/runtime/schema"
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
	// ErrFile: a file is not one PoolSet or class of snapshots.
	ErrFile = errors.New("not an object that can be applied")
	// ErrChangedElsewhere: somebody else set a field that the values set, too.
	ErrChangedElsewhere = errors.New("was changed by somebody else as well")
)

// Apply applies the objects in the *.yaml files of files, one in each, until ctx ends. Their definitions may come while it waits. It goes on with the next
// file after an error and answers all of them; applied is told of each object that is done.
func Apply(ctx context.Context, c client.Client, files fs.FS, retry time.Duration, applied func(object string)) error {
	names, err := fs.Glob(files, "*.yaml")
	if err != nil {
		return fmt.Errorf("list the files: %w", err)
	}
	if len(names) == 0 {
		return errors.New("apply: there is no *.yaml file: a folder with one object in each is needed")
	}
	var errs []error
	for _, name := range names {
		object, err := readObject(files, name)
		if err == nil {
			err = applyOne(ctx, c, object, retry)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", path.Base(name), err))
			continue
		}
		applied(title(object))
	}
	return errors.Join(errs...)
}

// The kinds that can be applied.
var (
	poolSets        = v1alpha1.GroupVersion.WithKind("PoolSet")
	snapshotClasses = schema.GroupVersionKind{Group: "snapshot.storage.k8s.io", Version: "v1", Kind: "VolumeSnapshotClass"}
	groupClasses    = schema.GroupVersionKind{Group: "groupsnapshot.storage.k8s.io", Version: "v1", Kind: "VolumeGroupSnapshotClass"}
)

// readObject reads a PoolSet strictly, too, so that a misspelt field is not silently nothing. It answers what stands there, so that what is not said is not
// applied.
func readObject(files fs.FS, name string) (*unstructured.Unstructured, error) {
	text, err := fs.ReadFile(files, name)
	if err != nil {
		return nil, fmt.Errorf("read the object: %w", err)
	}
	u := &unstructured.Unstructured{}
	if err := yaml.Unmarshal(text, &u.Object); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrFile, err)
	}
	switch kind := u.GroupVersionKind(); {
	case kind != poolSets && kind != snapshotClasses && kind != groupClasses:
		return nil, fmt.Errorf("%w: it is %s: use %s, %s or %s", ErrFile, kind, poolSets, snapshotClasses, groupClasses)
	case u.GetName() == "":
		return nil, fmt.Errorf("%w: the %s has no name", ErrFile, kind.Kind)
	case kind == poolSets:
		if err := yaml.UnmarshalStrict(text, &v1alpha1.PoolSet{}); err != nil {
			return nil, fmt.Errorf("%w: %w", ErrFile, err)
		}
	}
	return u, nil
}

func title(u *unstructured.Unstructured) string { return u.GetKind() + " " + u.GetName() }

func applyOne(ctx context.Context, c client.Client, object *unstructured.Unstructured, retry time.Duration) error {
	var last error
	err := wait.PollUntilContextCancel(ctx, retry, true, func(ctx context.Context) (bool, error) {
		last = c.Apply(ctx, client.ApplyConfigurationFromUnstructured(object.DeepCopy()), client.FieldOwner(FieldManager))
		switch {
		case last == nil:
			return true, nil
		case apierrors.IsConflict(last):
			return false, fmt.Errorf("%s %w: put that change into the chart's values, or give it up with "+
				"`kubectl apply --server-side --force-conflicts`: %w", title(object), ErrChangedElsewhere, last)
		case apierrors.IsInvalid(last), apierrors.IsBadRequest(last), apierrors.IsForbidden(last), apierrors.IsUnauthorized(last):
			return false, fmt.Errorf("apply %s: %w", title(object), last)
		}
		return false, nil // no definition yet, or no API server: both may come
	})
	if err != nil && last != nil && ctx.Err() != nil {
		return fmt.Errorf("apply %s, repeated until there was no more time: %w", title(object), last)
	}
	return err
}

package install

import (
	"context"
	"errors"
	"fmt"
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// ErrInUse: the cluster has volumes or snapshots of ours.
var ErrInUse = errors.New("still in use")

const (
	pageSize = 500 // objects asked for at once
	maxNamed = 5   // objects that the error names
)

// CheckUninstall answers ErrInUse while there are persistent volumes of our driver, or contents of its snapshots.
func CheckUninstall(ctx context.Context, c client.Client) error {
	volumes, err := ourVolumes(ctx, c)
	if err != nil {
		return fmt.Errorf("look for persistent volumes: %w", err)
	}
	snapshots, err := ourSnapshots(ctx, c)
	if err != nil {
		return fmt.Errorf("look for snapshots: %w", err)
	}
	var found []string
	if len(volumes) > 0 {
		found = append(found, fmt.Sprintf("%d persistent volumes (%s)", len(volumes), some(volumes)))
	}
	if len(snapshots) > 0 {
		found = append(found, fmt.Sprintf("%d volume snapshot contents (%s)", len(snapshots), some(snapshots)))
	}
	if len(found) == 0 {
		return nil
	}
	return fmt.Errorf("%w: there are %s of %s: delete the claims and snapshots they belong to, or them; `helm rollback RELEASE REVISION`, with the "+
		"revision that `helm status` shows, makes the release one that can be upgraded again. (helm uninstall --no-hooks goes on all the same: their data "+
		"stays on the nodes, but their pods can be neither started nor ended until Rowan is installed again)", ErrInUse, strings.Join(found, " and "),
		v1alpha1.DriverName)
}

func ourVolumes(ctx context.Context, c client.Client) (found []string, err error) {
	var list corev1.PersistentVolumeList
	for next := ""; ; next = list.Continue {
		if err := c.List(ctx, &list, client.Limit(pageSize), client.Continue(next)); err != nil {
			return nil, err
		}
		for _, v := range list.Items {
			if v.Spec.CSI == nil || v.Spec.CSI.Driver != v1alpha1.DriverName {
				continue
			}
			name := v.Name
			if claim := v.Spec.ClaimRef; claim != nil {
				name += " of claim " + claim.Namespace + "/" + claim.Name
			}
			found = append(found, name)
		}
		if list.Continue == "" {
			return found, nil
		}
	}
}

// ourSnapshots finds none where the cluster has no such kind.
func ourSnapshots(ctx context.Context, c client.Client) (found []string, err error) {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(schema.GroupVersionKind{Group: "snapshot.storage.k8s.io", Version: "v1", Kind: "VolumeSnapshotContentList"})
	for next := ""; ; next = list.GetContinue() {
		if err := c.List(ctx, list, client.Limit(pageSize), client.Continue(next)); meta.IsNoMatchError(err) {
			return nil, nil
		} else if err != nil {
			return nil, err
		}
		for _, s := range list.Items {
			if driver, _, _ := unstructured.NestedString(s.Object, "spec", "driver"); driver != v1alpha1.DriverName {
				continue
			}
			name := s.GetName()
			namespace, _, _ := unstructured.NestedString(s.Object, "spec", "volumeSnapshotRef", "namespace")
			of, _, _ := unstructured.NestedString(s.Object, "spec", "volumeSnapshotRef", "name")
			if of != "" {
				name += " of snapshot " + namespace + "/" + of
			}
			found = append(found, name)
		}
		if list.GetContinue() == "" {
			return found, nil
		}
	}
}

// some names the first few.
func some(names []string) string {
	if len(names) > maxNamed {
		return strings.Join(names[:maxNamed], ", ") + fmt.Sprintf(" and %d more", len(names)-maxNamed)
	}
	return strings.Join(names, ", ")
}

package kit

import (
	"context"
	"fmt"
	"time"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/klog/v2"
)

// WhenInstalled calls then as soon as the API server knows a kind, which may be never. It returns when it did, or ctx is done. An API server that
// does not answer is asked again.
func (k *Kit) WhenInstalled(ctx context.Context, mapper meta.RESTMapper, kind schema.GroupVersionKind, then func() error) error {
	ticker := time.NewTicker(k.ProbeEvery)
	defer ticker.Stop()
	for first := true; ; first = false {
		_, err := mapper.RESTMapping(kind.GroupKind(), kind.Version)
		if err == nil {
			if err := then(); err != nil {
				return fmt.Errorf("begin with %s: %w", kind.Kind, err)
			}
			return nil
		}
		if !meta.IsNoMatchError(err) {
			klog.FromContext(ctx).Error(err, "Could not ask for a definition", "kind", kind.Kind, "group", kind.Group)
		} else if first {
			klog.FromContext(ctx).Info("Waiting for a definition that is not installed", "kind", kind.Kind, "group", kind.Group)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

package cluster

import (
	"context"
	"sync"

	toolscache "k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// FromInformers makes a Cache of a controller-runtime cache, which the caller starts.
func FromInformers(c cache.Cache) Cache { return &informers{Reader: c, cache: c} }

type informers struct {
	client.Reader
	cache cache.Cache

	mu     sync.Mutex
	synced []func() bool // guarded by mu
}

// Watch implements Cache. An informer changes its store before it tells of the change.
func (i *informers) Watch(ctx context.Context, obj client.Object, changed func(client.Object)) error {
	informer, err := i.cache.GetInformer(ctx, obj, cache.BlockUntilSynced(false))
	if err != nil {
		return err
	}
	tell := func(o any) {
		if gone, ok := o.(toolscache.DeletedFinalStateUnknown); ok {
			o = gone.Obj
		}
		if o, ok := o.(client.Object); ok {
			changed(o)
		}
	}
	reg, err := informer.AddEventHandler(toolscache.ResourceEventHandlerFuncs{
		AddFunc: tell, UpdateFunc: func(_, o any) { tell(o) }, DeleteFunc: tell,
	})
	if err != nil {
		return err
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	i.synced = append(i.synced, reg.HasSynced)
	return nil
}

// Synced implements Cache.
func (i *informers) Synced() bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	for _, synced := range i.synced {
		if !synced() {
			return false
		}
	}
	return true
}

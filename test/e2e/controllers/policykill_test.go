package controllers

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
)

// killer ends a replica at its n-th write: before it is done, or after it and before the answer is heard.
type killer struct {
	mu     sync.Mutex
	writes int
	at     int
	after  bool
	dead   bool
	die    chan struct{}
	*record
}

// record of the snapshots that replicas made and deleted.
type record struct {
	lock       sync.Mutex
	made, gone []string
}

var errKilled = errors.New("killed")

// write counts one; nothing is written by the dead.
func (k *killer) write(do func() error) error {
	k.mu.Lock()
	if k.dead {
		k.mu.Unlock()
		return errKilled
	}
	k.writes++
	now := k.writes == k.at
	if now {
		k.dead = true
		close(k.die)
	}
	k.mu.Unlock()
	if now && !k.after {
		return errKilled
	}
	err := do()
	if now {
		return errKilled
	}
	return err
}

func (k *killer) wrap(c client.WithWatch) client.WithWatch {
	note := func(list *[]string, o client.Object, err error) error {
		if _, ok := o.(*snapshotv1.VolumeSnapshot); ok && err == nil {
			k.lock.Lock()
			defer k.lock.Unlock()
			*list = append(*list, o.GetName())
		}
		return err
	}
	return interceptor.NewClient(c, interceptor.Funcs{
		Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			return k.write(func() error { return note(&k.made, o, c.Create(ctx, o, opts...)) })
		},
		Delete: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.DeleteOption) error {
			return k.write(func() error { return note(&k.gone, o, c.Delete(ctx, o, opts...)) })
		},
		Patch: func(ctx context.Context, c client.WithWatch, o client.Object, p client.Patch, opts ...client.PatchOption) error {
			return k.write(func() error { return c.Patch(ctx, o, p, opts...) })
		},
		SubResourcePatch: func(ctx context.Context, c client.Client, sub string, o client.Object, p client.Patch, opts ...client.SubResourcePatchOption) error {
			return k.write(func() error { return c.SubResource(sub).Patch(ctx, o, p, opts...) })
		},
	})
}

// TestPolicySurvivesDeathAtEveryWrite ends the controller at each of its writes in turn, and starts another: what is made and pruned is the same.
func TestPolicySurvivesDeathAtEveryWrite(t *testing.T) {
	w := start(t)
	w.installSnapshots()
	died := true
	for n := 1; died; n++ {
		for _, after := range []bool{false, true} {
			t.Run(fmt.Sprintf("write %d, after %v", n, after), func(t *testing.T) { died = dieAt(w.stage(t), n, after) })
			if t.Failed() {
				return
			}
		}
		if n > 200 {
			t.Fatal("it writes for ever")
		}
		if !died {
			t.Logf("%d writes", n-1)
		}
	}
}

func dieAt(s *stage, n int, after bool) (died bool) {
	k := &killer{at: n, after: after, die: make(chan struct{}), record: &record{}}
	stop, _ := s.runWith(false, k.wrap)
	s.aside = func() {
		select {
		case <-k.die:
			if !died {
				died = true
				stop()
				stop, _ = s.runWith(false, (&killer{record: k.record}).wrap)
			}
		default:
		}
	}
	for _, name := range []string{"a", "b"} {
		s.pvc(name, v1alpha1.DriverName, db)
	}
	p := s.policy("hourly", strings.Replace(hourlyKeepTwo, "{selector", "{deletionPolicy: Delete, selector", 1))
	base := s.base()
	both := func(hours ...int) {
		s.t.Helper()
		want := s.hours(base, hours...)
		s.reach("snapshots are "+want, func() bool { return s.of("a") == want && s.of("b") == want })
	}
	both(0)
	s.step(time.Hour)
	both(1, 0)
	s.step(time.Hour)
	both(2, 1)
	s.passed()
	both(2, 1)
	s.must(s.Delete(s.t.Context(), p))
	s.reach("the policy and its snapshots are gone", func() bool {
		return len(s.all()) == 0 && apierrors.IsNotFound(s.get(p, "hourly"))
	})
	k.lock.Lock()
	defer k.lock.Unlock()
	// A call that was under way when its process was ended may have been carried out, too: what the API server showed counts.
	for what, list := range map[string][]string{"made": k.made, "deleted": k.gone} {
		slices.Sort(list)
		if len(slices.Compact(slices.Clone(list))) != len(list) {
			s.t.Errorf("%s twice: %v", what, list)
		}
		for _, name := range list {
			s.made[name] = true
		}
	}
	if len(s.made) != 6 {
		s.t.Errorf("%d snapshots ever were, want 6: %v", len(s.made), slices.Sorted(maps.Keys(s.made)))
	}
	return died
}

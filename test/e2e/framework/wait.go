package framework

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/apiutil"
)

// Wait is how long a test waits for one thing, where it does not say otherwise.
const Wait = 3 * time.Minute

// Until waits until an object, which names what is meant, satisfies a condition: nil. Until then the condition says what is missing.
func Until[T client.Object](t testing.TB, c *Cluster, o T, within time.Duration, condition func(T) error) T {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), within)
	defer cancel()
	if err := c.until(ctx, o, func() error { return condition(o) }); err != nil {
		t.Fatalf("%s after %v: %v\n%s", describe(c, o), within, err, c.events(o))
	}
	return o
}

// Gone waits until there is no such object.
func Gone(t testing.TB, c *Cluster, o client.Object) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Wait)
	defer cancel()
	uid := o.GetUID()
	if err := c.Get(ctx, client.ObjectKeyFromObject(o), o); apierrors.IsNotFound(err) {
		return
	}
	err := c.until(ctx, o, func() error {
		if uid != "" && o.GetUID() != uid {
			return errGone
		}
		return fmt.Errorf("it is still there, with finalizers %v", o.GetFinalizers())
	})
	if !errors.Is(err, errGone) {
		t.Fatalf("%s: %v\n%s", describe(c, o), err, c.events(o))
	}
}

// errGone says that the object is not there any more.
var errGone = errors.New("it is gone")

// until asks the condition at every change of the object. An object that is not there yet is waited for; one that was deleted ends the waiting.
func (c *Cluster) until(ctx context.Context, o client.Object, condition func() error) error {
	missing := fmt.Errorf("it is not there")
	for {
		last := missing
		list, err := c.listOf(o)
		if err != nil {
			return err
		}
		w, err := c.Watch(ctx, list, client.InNamespace(o.GetNamespace()), client.MatchingFields{"metadata.name": o.GetName()})
		if err != nil {
			return fmt.Errorf("watch: %w (%w)", err, last)
		}
		err = c.Get(ctx, client.ObjectKeyFromObject(o), o)
		switch {
		case err == nil:
			missing = errGone
			if last = condition(); last == nil || errors.Is(last, errGone) {
				w.Stop()
				return last
			}
		case !apierrors.IsNotFound(err):
			w.Stop()
			return fmt.Errorf("get: %w", err)
		case o.GetUID() != "":
			w.Stop()
			return errGone
		}
		last, err = c.follow(ctx, w, o, last, condition)
		w.Stop()
		if err != nil || last == nil || errors.Is(last, errGone) {
			return errors.Join(err, last)
		}
	}
}

// follow asks the condition at every event of one watch; it returns with the condition's answer, or when the watch ends.
func (c *Cluster) follow(ctx context.Context, w watch.Interface, o client.Object, last error, condition func() error) (error, error) {
	for {
		select {
		case <-ctx.Done():
			return last, context.Cause(ctx)
		case e, open := <-w.ResultChan():
			if !open || e.Type == watch.Error {
				return last, nil
			}
			if e.Type == watch.Deleted {
				return errGone, nil
			}
			reflect.ValueOf(o).Elem().Set(reflect.ValueOf(e.Object).Elem())
			if last = condition(); last == nil || errors.Is(last, errGone) {
				return last, nil
			}
		}
	}
}

func (c *Cluster) listOf(o client.Object) (client.ObjectList, error) {
	gvk, err := apiutil.GVKForObject(o, c.Scheme())
	if err != nil {
		return nil, fmt.Errorf("kind of %T: %w", o, err)
	}
	list, err := c.Scheme().New(schema.GroupVersionKind{Group: gvk.Group, Version: gvk.Version, Kind: gvk.Kind + "List"})
	if err != nil {
		return nil, fmt.Errorf("list of %T: %w", o, err)
	}
	return list.(client.ObjectList), nil
}

func describe(c *Cluster, o client.Object) string {
	gvk, _ := apiutil.GVKForObject(o, c.Scheme())
	return fmt.Sprintf("%s %s/%s", gvk.Kind, o.GetNamespace(), o.GetName())
}

// Events are the events about an object, oldest first.
func (c *Cluster) Events(ctx context.Context, o client.Object) ([]corev1.Event, error) {
	var list corev1.EventList
	if err := c.List(ctx, &list, client.InNamespace(o.GetNamespace()), client.MatchingFields{"involvedObject.name": o.GetName()}); err != nil {
		return nil, fmt.Errorf("list events: %w", err)
	}
	slices.SortFunc(list.Items, func(a, b corev1.Event) int { return a.LastTimestamp.Compare(b.LastTimestamp.Time) })
	return list.Items, nil
}

func (c *Cluster) events(o client.Object) string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	events, err := c.Events(ctx, o)
	if err != nil {
		return err.Error()
	}
	var b strings.Builder
	for _, e := range events {
		fmt.Fprintf(&b, "event: %s %s (%d): %s\n", e.Type, e.Reason, e.Count, e.Message)
	}
	return b.String()
}

// UntilEvent waits until an event about the object says a text.
func UntilEvent(t testing.TB, c *Cluster, o client.Object, text string) corev1.Event {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), Wait)
	defer cancel()
	for {
		w, err := c.Watch(ctx, &corev1.EventList{}, client.InNamespace(o.GetNamespace()), client.MatchingFields{"involvedObject.name": o.GetName()})
		if err != nil {
			t.Fatalf("%s: no event says %q: watch: %v\n%s", describe(c, o), text, err, c.events(o))
		}
		events, err := c.Events(ctx, o)
		must(t, err)
		for _, e := range events {
			if strings.Contains(e.Message, text) {
				w.Stop()
				return e
			}
		}
		found := func() *corev1.Event {
			defer w.Stop()
			for e := range w.ResultChan() {
				if event, ok := e.Object.(*corev1.Event); ok && strings.Contains(event.Message, text) {
					return event
				}
			}
			return nil
		}()
		if found != nil {
			return *found
		}
		if ctx.Err() != nil {
			t.Fatalf("%s: no event says %q\n%s", describe(c, o), text, c.events(o))
		}
	}
}

// errThere says that an object that should go is there.
var errThere = errors.New("it is still there")

package snapshotpolicy

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/snapshotusers"
	"github.com/rowan-csi/rowan/pkg/retention"
)

// pass over one policy.
type pass struct {
	c   *Controller
	p   *policy
	mem *memory
	now time.Time

	rules     *retention.Rules
	wrong     retention.FieldErrors
	ticks     []retention.Tick
	since     map[string]metav1.Time // of schedules
	users     []snapshotusers.Kind
	groupKind schema.GroupVersionKind
	classes   []class
	ch        *chosen
	observed  []*observed
	byKey     map[string]*observed
	snapshots []retention.Snapshot // of observed, in the same order
	awaiting  map[string]string    // by source: why its due snapshot is not there
	gone      map[string]metav1.Time
	plan      retention.Plan
	decided   map[string][]*retention.Decision // of sources with something to prune
	taken     int
	paused    time.Time // the brake is on until then, and something is to be pruned
	next      time.Time // when to look again
}

func newPass(c *Controller, p *policy, mem *memory) *pass {
	ps := &pass{c: c, p: p, mem: mem, now: c.Clock.Now(), awaiting: map[string]string{}}
	ps.rules, ps.wrong = retention.New(*p.spec)
	ps.users, ps.groupKind = c.others.installed()
	ps.next = ps.now.Add(lookAgain)
	return ps
}

// soon has the policy looked at again then, or before.
func (ps *pass) soon(at time.Time) {
	if at.Before(ps.next) {
		ps.next = at
	}
}

// run the pass, and say after which time to look again.
func (ps *pass) run(ctx context.Context) (time.Duration, error) {
	passes.WithLabelValues(ps.p.labelValues()...).Inc()
	if err := ps.readClasses(ctx); err != nil {
		return 0, err
	}
	var err error
	if ps.ch, err = ps.choose(ctx); err != nil {
		return 0, err
	}
	if err := ps.observe(ctx); err != nil {
		return 0, err
	}
	ps.dateSchedules()
	adopted := ps.adopt(ctx)
	ps.take(ctx)
	if err := ps.decide(ctx); err != nil {
		return 0, errors.Join(adopted, err)
	}
	if err := errors.Join(adopted, ps.prune(ctx), ps.report(ctx)); err != nil {
		return 0, err
	}
	return max(ps.next.Sub(ps.now), time.Millisecond), nil
}

// dateSchedules finds since when each schedule is what it is. One that is new since the policy's last pass begins now; those of a new policy began with it.
func (ps *pass) dateSchedules() {
	known := map[string]v1alpha1.ScheduleStatus{}
	for _, s := range ps.p.status.Schedules {
		known[s.Name] = s
	}
	ps.since = map[string]metav1.Time{}
	ps.ticks = ps.rules.Ticks(ps.now)
	for _, t := range ps.ticks {
		switch was, ok := known[t.Name]; {
		case ok && was.When == t.When:
			ps.since[t.Name] = was.Since
		case ps.p.status.ObservedGeneration == 0:
			ps.since[t.Name] = ps.p.created()
		default:
			ps.since[t.Name] = metav1.NewTime(ps.now.Truncate(time.Second))
		}
	}
}

// adopt labels what a policy of the same name left as this one's. The planner counts it as this policy's before, so that nothing hangs on how far it came.
func (ps *pass) adopt(ctx context.Context) error {
	if !ps.p.adopts() || ps.p.spec.DryRun {
		return nil
	}
	var calls []func()
	var mu sync.Mutex
	var failed []error
	for _, o := range ps.observed {
		if o.sick != nil || o.facts.Deleting || o.facts.Labels[retention.LabelPolicy] == ps.p.uid() {
			continue
		}
		calls = append(calls, func() {
			obj := o.obj.DeepCopyObject().(client.Object)
			_, err := ps.c.Patch(ctx, obj, func() {
				obj.SetLabels(with(obj.GetLabels(), retention.LabelPolicy, ps.p.uid()))
			})
			if err != nil && !apierrors.IsConflict(err) { // a conflict is seen in the next pass
				mu.Lock()
				defer mu.Unlock()
				failed = append(failed, fmt.Errorf("adopt snapshot %s: %w", o.key(), err))
			}
		})
	}
	sideBySide(calls)
	if n := len(calls) - len(failed); n > 0 {
		ps.c.Events.Eventf(ps.p.obj, nil, corev1.EventTypeNormal, "Adopted", "Adopt", "%d snapshots of a policy of the same name that was deleted", n)
	}
	return errors.Join(failed...)
}

func with(labels map[string]string, key, value string) map[string]string {
	changed := map[string]string{key: value}
	for k, v := range labels {
		if k != key {
			changed[k] = v
		}
	}
	return changed
}

// decide makes the plan.
func (ps *pass) decide(ctx context.Context) error {
	in := retention.Input{Now: ps.now, PolicyUID: ps.p.uid(), PolicyName: ps.p.annotation(), Snapshots: ps.snapshots, Pressure: ps.mem.pressure}
	titles := map[string]*observed{}
	for _, o := range ps.observed {
		if o.sick == nil {
			titles[sourceOf(o)] = o
		}
	}
	ps.dateGone(titles)
	for key, o := range titles {
		s := retention.Source{Key: key, Name: o.title(), Awaiting: ps.awaiting[key]}
		if at, gone := ps.gone[key]; gone {
			s.Gone = &at.Time
		}
		if chosen := ps.ch.sources[key]; chosen != nil {
			s.Pool = chosen.pool
		}
		in.Sources = append(in.Sources, s)
	}
	if err := ps.poolFigures(ctx, &in, titles); err != nil {
		return err
	}
	ps.plan = ps.rules.Plan(in)
	ps.mem.pressure = ps.plan.Pressure
	return nil
}

// sourceOf is the key of the source that the planner reads of a snapshot.
func sourceOf(o *observed) string {
	if given := o.facts.Annotations[retention.AnnotationSource]; given != "" {
		return given
	}
	return o.facts.Source
}

// dateGone finds since when sources are known to be gone. It is counted from when it was first written: a time that is lost is counted anew.
func (ps *pass) dateGone(titles map[string]*observed) {
	known := map[string]metav1.Time{}
	for _, g := range ps.p.status.GoneSources {
		known[g.Key] = g.Since
	}
	ps.gone = map[string]metav1.Time{}
	for key, o := range titles {
		given := o.facts.Annotations[retention.AnnotationSource] != ""
		if ps.ch.there[key] || !given && strings.Contains(key, "/") && !o.facts.IsGroup {
			continue // without its annotation nobody knows which claim it was of
		}
		since, ok := known[key]
		if !ok || since.After(ps.now) {
			since = metav1.NewTime(ps.now.Truncate(time.Second))
		}
		ps.gone[key] = since
	}
}

// sideBySide makes calls, a few at a time, so that one that hangs holds up none but itself.
func sideBySide(calls []func()) {
	slots := make(chan struct{}, callsAtOnce)
	var wait sync.WaitGroup
	for _, call := range calls {
		slots <- struct{}{}
		wait.Go(func() {
			call()
			<-slots
		})
	}
	wait.Wait()
}

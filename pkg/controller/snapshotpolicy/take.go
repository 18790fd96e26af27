package snapshotpolicy

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
	"github.com/rowan-csi/rowan/pkg/retention"
)

// slotTime is how long a snapshot that nothing is heard of takes one of maxConcurrent's slots: a driver that is away does not keep the other PVCs waiting.
const slotTime = 5 * time.Minute

// due is a snapshot to be begun.
type due struct {
	s   *src
	run *retention.Run
}

// take begins what is due. What is due and is not begun is awaited: no rule prunes anything of that source meanwhile.
func (ps *pass) take(ctx context.Context) {
	history, making := ps.history()
	taking := ps.takesNow()
	var list []due
	for _, s := range ps.ch.order {
		if next := ps.rules.Next(s.key, ps.now); !next.IsZero() && ps.p.takes() {
			ps.soon(next)
		}
		if !ps.p.takes() {
			continue
		}
		if s.trouble != nil {
			ps.awaiting[s.key] = s.trouble.message
			ps.tell(s, s.trouble.reason, s.trouble.message)
			continue
		}
		run := ps.rules.Run(ps.p.uid(), s.key, ps.historyOf(s, history[s.key]), ps.now)
		switch {
		case run == nil:
			delete(ps.mem.told, "trouble "+s.key)
		case !taking:
			ps.awaiting[s.key] = "the policy takes none until it is put right"
		default:
			list = append(list, due{s, run})
		}
	}
	slices.SortStableFunc(list, func(a, b due) int { return a.run.Nominal.Compare(b.run.Nominal) })
	ps.begin(ctx, list, making)
}

// begin as many as may be in the making at once, the longest due first.
func (ps *pass) begin(ctx context.Context, list []due, making int) {
	limit := retention.DefaultConcurrent
	if ps.p.spec.MaxConcurrent != nil {
		limit = *ps.p.spec.MaxConcurrent
	}
	type result struct {
		due
		made *observed
		err  error
	}
	var results []*result
	var calls []func()
	for _, d := range list {
		if ps.stands(ctx, d) {
			ps.mem.begin(d.s.key, d.run.Schedules)
			continue
		}
		if f := ps.mem.waits(d.s.key, ps.now); f != nil {
			ps.awaiting[d.s.key] = f.message
			ps.soon(f.until)
			continue
		}
		if making >= limit { // one that becomes ready, or its slot's end, brings the next
			ps.awaiting[d.s.key] = fmt.Sprintf("it waits for others: maxConcurrent is %d", limit)
			continue
		}
		making++
		r := &result{due: d}
		results = append(results, r)
		calls = append(calls, func() { r.made, r.err = ps.create(ctx, d) })
	}
	sideBySide(calls)
	for _, r := range results {
		if r.err != nil {
			ps.refused(r.due, r.err)
			continue
		}
		ps.mem.unseen[r.made.key()] = &unseen{r.made, ps.now}
		ps.observed = append(ps.observed, r.made)
		ps.began(r.due, r.made)
	}
	if ps.taken > 0 {
		ps.convert()
	}
}

// takesNow says whether the policy is right enough to take snapshots by.
func (ps *pass) takesNow() bool {
	return ps.p.takes() && !ps.wrong.Under("selector") && !ps.wrong.Under("template") && ps.ownClass() == "" && (!ps.p.grouped() || !ps.groupKind.Empty())
}

// history of each source's schedules, and how many snapshots are in the making.
func (ps *pass) history() (map[string]map[string]retention.History, int) {
	all := map[string]map[string]retention.History{}
	making := 0
	for i, o := range ps.observed {
		if o.sick != nil {
			continue
		}
		s := &ps.snapshots[i]
		inMaking := s.InMaking(ps.now)
		if age := ps.now.Sub(s.RequestedAt); inMaking && s.Error == "" && age < slotTime && age > -slotTime {
			making++
			ps.soon(s.RequestedAt.Add(slotTime))
		}
		h := all[s.Source]
		if h == nil {
			h = map[string]retention.History{}
			all[s.Source] = h
		}
		for name, at := range o.runs {
			e := h[name]
			e.Done = retention.LatestRun([]time.Time{e.Done, at}, ps.now)
			e.Making = e.Making || inMaking
			h[name] = e
		}
	}
	return all, making
}

// historyOf a source, with what this process remembers and since when its schedules count. A time ahead of now (the clock was set back) counts for
// nothing, for snapshots are taken on.
func (ps *pass) historyOf(s *src, known map[string]retention.History) map[string]retention.History {
	h := make(map[string]retention.History, len(ps.ticks))
	for _, t := range ps.ticks {
		e := known[t.Name]
		e.Done = retention.LatestRun([]time.Time{e.Done, ps.mem.begun[s.key][t.Name]}, ps.now)
		e.Since = retention.LatestRun([]time.Time{ps.p.created().Time, s.since, ps.since[t.Name].Time}, ps.now)
		h[t.Name] = e
	}
	return h
}

// stands says whether a snapshot of that name is there, whatever it is labelled with now: a name is for one source and one time.
func (ps *pass) stands(ctx context.Context, d due) bool {
	o := ps.emptyObject()
	return ps.reader().Get(ctx, client.ObjectKey{Namespace: d.s.namespace, Name: d.run.Name}, o) == nil
}

func (ps *pass) reader() client.Reader {
	if ps.p.grouped() {
		return ps.c.others.reader
	}
	return ps.c.Client
}

func (ps *pass) emptyObject() client.Object {
	if !ps.p.grouped() {
		return &snapshotv1.VolumeSnapshot{}
	}
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(ps.groupKind)
	return u
}

// create a snapshot. One that is there already was made by a pass that did not hear the answer, or by another leader.
func (ps *pass) create(ctx context.Context, d due) (*observed, error) {
	o := ps.object(d)
	err := ps.c.Client.Create(ctx, o)
	if apierrors.IsAlreadyExists(err) {
		o = ps.emptyObject()
		err = ps.c.Live.Get(ctx, client.ObjectKey{Namespace: d.s.namespace, Name: d.run.Name}, o)
	}
	if err != nil {
		return nil, fmt.Errorf("make %s %s: %w", ps.snapshotKind(), d.run.Name, err)
	}
	made := &observed{obj: o, facts: factsOf(o), claim: d.s.name}
	made.facts.Source = d.s.key
	if ps.p.grouped() {
		made.facts.IsGroup, made.claim, made.value, made.label = true, "", d.s.name, ps.p.group().ByLabel
	}
	return made, nil
}

func (ps *pass) snapshotKind() string {
	if ps.p.grouped() {
		return kindGroup
	}
	return "VolumeSnapshot"
}

// object of a snapshot to be made.
func (ps *pass) object(d due) client.Object {
	t := &ps.p.spec.Template
	labels := maps.Clone(t.Labels)
	if labels == nil {
		labels = map[string]string{}
	}
	labels[retention.LabelPolicy] = ps.p.uid()
	annotations := map[string]string{retention.AnnotationPolicy: ps.p.annotation(), retention.AnnotationSource: d.s.key,
		retention.AnnotationSchedules: retention.RunsText(d.run.Schedules)}
	if t.Consistency == retention.ConsistencyFreeze {
		annotations[v1alpha1.ConsistencyAnnotation] = string(t.Consistency)
	}
	if ps.p.grouped() {
		spec := map[string]any{"source": map[string]any{"selector": map[string]any{"matchLabels": map[string]any{t.Group.ByLabel: d.s.name}}}}
		if t.VolumeSnapshotClassName != "" {
			spec["volumeGroupSnapshotClassName"] = t.VolumeSnapshotClassName
		}
		u := &unstructured.Unstructured{Object: map[string]any{"spec": spec}}
		u.SetGroupVersionKind(ps.groupKind)
		u.SetNamespace(d.s.namespace)
		u.SetName(d.run.Name)
		u.SetLabels(labels)
		u.SetAnnotations(annotations)
		return u
	}
	s := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: d.s.namespace, Name: d.run.Name, Labels: labels, Annotations: annotations},
		Spec: snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &d.s.name}}}
	if t.VolumeSnapshotClassName != "" {
		s.Spec.VolumeSnapshotClassName = &t.VolumeSnapshotClassName
	}
	return s
}

// began notes that a snapshot was asked for.
func (ps *pass) began(d due, made *observed) {
	ps.taken++
	delete(ps.mem.failures, d.s.key)
	delete(ps.mem.told, "trouble "+d.s.key)
	ps.mem.begin(d.s.key, d.run.Schedules)
	takenTotal.WithLabelValues(ps.p.labelValues()...).Inc()
	late := ""
	if d.run.CaughtUp {
		late = ", made up for"
	}
	for _, claim := range d.s.claims {
		ps.c.Events.Eventf(claim, made.obj, corev1.EventTypeNormal, "SnapshotTaken", "Snapshot", "%s %s for %s at %s%s, by %s", ps.snapshotKind(), d.run.Name,
			strings.Join(slices.Sorted(maps.Keys(d.run.Schedules)), ", "), d.run.Nominal.UTC().Format(time.RFC3339), late, ps.p.title())
	}
}

// refused notes that a snapshot could not be asked for. That is the source's own trouble and no error of the pass: others go on.
func (ps *pass) refused(d due, err error) {
	text := kit.Shorten(err.Error())
	failedTotal.WithLabelValues(append(ps.p.labelValues(), "take")...).Inc()
	ps.awaiting[d.s.key] = text
	ps.mem.fail(d.s.key, text, ps.now)
	ps.soon(ps.mem.failures[d.s.key].until)
	ps.tell(d.s, "SnapshotRefused", text)
}

// tell a source's claims what is in the way, once.
func (ps *pass) tell(s *src, reason, message string) {
	if !ps.mem.news("trouble "+s.key, message) {
		return
	}
	for _, claim := range s.claims {
		ps.c.Events.Eventf(claim, ps.p.obj, corev1.EventTypeWarning, reason, "Snapshot", "%s takes no snapshot: %s", ps.p.title(), message)
	}
}

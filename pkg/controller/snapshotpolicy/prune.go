package snapshotpolicy

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
	"github.com/rowan-csi/rowan/pkg/retention"
)

// prune what the plan says. The order keeps DESIGN's promise that a snapshot which is acknowledged stays until somebody with the right to decides: the
// policy as it is now (read from the API server), the newest ready snapshots that stay and the holds of a group's members (read there, too), then each
// victim, as it was seen or not at all.
func (ps *pass) prune(ctx context.Context) error {
	victims := map[string][]*retention.Decision{}
	var order []string
	for _, d := range ps.plan.Prunes() {
		if victims[d.Snapshot.Source] == nil {
			order = append(order, d.Snapshot.Source)
		}
		victims[d.Snapshot.Source] = append(victims[d.Snapshot.Source], d)
	}
	if len(order) == 0 || !ps.p.prunesNow() {
		return nil
	}
	if ps.paused = ps.braked(); !ps.paused.IsZero() {
		ps.soon(ps.paused)
		return nil
	}
	if same, err := ps.policyIsAsSeen(ctx); err != nil || !same {
		return err
	}
	if err := ps.brakeNext(ctx); err != nil {
		return err
	}
	ps.decided = map[string][]*retention.Decision{}
	for i := range ps.plan.Decisions {
		d := &ps.plan.Decisions[i]
		if victims[d.Snapshot.Source] != nil {
			ps.decided[d.Snapshot.Source] = append(ps.decided[d.Snapshot.Source], d)
		}
	}
	var mu sync.Mutex
	var failed []error
	var gone []*retention.Decision
	var calls []func()
	for _, key := range order {
		calls = append(calls, func() {
			done, err := ps.pruneSource(ctx, key, victims[key], &mu)
			mu.Lock()
			defer mu.Unlock()
			gone = append(gone, done...)
			failed = append(failed, err)
		})
	}
	sideBySide(calls)
	ps.told(ctx, gone)
	return errors.Join(failed...)
}

// braked says until when pruning pauses; zero: it does not. A clock that was set back does not make it pause for ages.
func (ps *pass) braked() time.Time {
	until := ps.p.status.Plan.BrakedUntil
	if until == nil || !ps.now.Before(until.Time) || until.Sub(ps.now) > brake {
		return time.Time{}
	}
	return until.Time
}

// policyIsAsSeen reads the policy from the API server: one that was changed, suspended or deleted since prunes nothing by its old rules.
func (ps *pass) policyIsAsSeen(ctx context.Context) (bool, error) {
	live := newPolicy(ps.p.key())
	if err := ps.c.Live.Get(ctx, ps.p.key(), live); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	same := live.GetUID() == ps.p.obj.GetUID() && live.GetGeneration() == ps.p.obj.GetGeneration() && live.GetDeletionTimestamp() == nil
	if !same {
		ps.soon(ps.now.Add(time.Second))
	}
	return same, nil
}

// brakeNext writes that the pass after this one waits, before this one deletes anything: a process that is ended in between does not prune twice as much.
func (ps *pass) brakeNext(ctx context.Context) error {
	var until *metav1.Time
	if slices.ContainsFunc(ps.plan.Notices, func(n retention.Notice) bool { return n.Type == retention.NoticePruneBraked }) {
		t := metav1.NewTime(ps.now.Add(brake).Truncate(time.Second))
		until = &t
		ps.soon(t.Time)
	}
	return ps.c.patchStatus(ctx, ps.p, func(s *v1alpha1.SnapshotPolicyStatus) { s.Plan.BrakedUntil = until })
}

// pruneSource deletes one source's victims, oldest first. What the API server says otherwise than the cache stops it until the next pass.
func (ps *pass) pruneSource(ctx context.Context, key string, victims []*retention.Decision, mu *sync.Mutex) (done []*retention.Decision, err error) {
	ok, err := ps.stays(ctx, key, victims)
	if err != nil {
		return nil, err
	}
	if !ok {
		mu.Lock()
		defer mu.Unlock()
		ps.soon(ps.now.Add(time.Second))
		return nil, nil
	}
	for _, d := range victims {
		o := ps.byKey[d.Snapshot.Key]
		held, err := ps.heldSince(ctx, o)
		if err == nil && !held {
			err = ps.delete(ctx, o.obj)
		}
		mu.Lock()
		switch {
		case held:
			ps.soon(ps.now.Add(time.Second))
		case err == nil:
			done = append(done, d)
			ps.mem.deleted[o.obj.GetUID()] = true
			delete(ps.mem.failures, d.Snapshot.Key)
		case apierrors.IsConflict(err): // it was changed, so it is another decision
			ps.soon(ps.now.Add(time.Second))
		default:
			ps.notPruned(ctx, o, d, err)
		}
		mu.Unlock()
	}
	return done, nil
}

// delete a snapshot as it was seen: its hold, its labels and its owners are part of that. One that is gone is deleted.
func (ps *pass) delete(ctx context.Context, o client.Object) error {
	uid, version := o.GetUID(), o.GetResourceVersion()
	return client.IgnoreNotFound(ps.c.Client.Delete(ctx, o, client.Preconditions{UID: &uid, ResourceVersion: &version}))
}

func (ps *pass) notPruned(ctx context.Context, o *observed, d *retention.Decision, err error) {
	text := kit.Shorten(err.Error())
	failedTotal.WithLabelValues(append(ps.p.labelValues(), "prune")...).Inc()
	ps.mem.fail(d.Snapshot.Key, text, ps.now)
	ps.soon(ps.mem.failures[d.Snapshot.Key].until)
	if ps.mem.news("prune "+d.Snapshot.Key, text) {
		ps.c.Events.Eventf(ps.about(ctx, o), o.obj, corev1.EventTypeWarning, "SnapshotNotPruned", "Prune", "%s could not delete %s: %s", ps.p.title(), o.key(), text)
	}
}

// stays reads what is to stay of a source from the API server: the newest ready snapshots, as many as minKeep says. Where the source is gone and
// afterSourceDeleted may take the last one, it is the source that must not be there.
func (ps *pass) stays(ctx context.Context, key string, victims []*retention.Decision) (bool, error) {
	if slices.ContainsFunc(victims, func(d *retention.Decision) bool { return d.Reason == retention.SourceGone }) {
		if there, err := ps.claimIsThere(ctx, key, ps.byKey[victims[0].Snapshot.Key]); err != nil || there {
			return false, err
		}
	}
	floor := 1
	if r := ps.p.spec.Retention; r != nil && r.MinKeep != nil {
		floor = *r.MinKeep
	}
	for _, d := range ps.decided[key] { // newest first
		if d.Action != retention.Keep || !d.Snapshot.Ready || d.Snapshot.CreatedAt.After(ps.now.Add(retention.SkewLimit)) {
			continue
		}
		if floor--; floor < 0 {
			break
		}
		o := ps.byKey[d.Snapshot.Key]
		live := o.obj.DeepCopyObject().(client.Object)
		if err := ps.c.Live.Get(ctx, client.ObjectKeyFromObject(o.obj), live); err != nil {
			return false, client.IgnoreNotFound(err)
		}
		if live.GetResourceVersion() != o.obj.GetResourceVersion() {
			return false, nil
		}
	}
	return true, nil
}

// claimIsThere asks the API server whether a source that the cache has no more is there.
func (ps *pass) claimIsThere(ctx context.Context, key string, o *observed) (bool, error) {
	if o.facts.IsGroup {
		var list corev1.PersistentVolumeClaimList
		if err := ps.c.Live.List(ctx, &list, client.InNamespace(o.facts.Namespace), client.MatchingLabels{o.label: o.value}, client.Limit(1)); err != nil {
			return false, fmt.Errorf("list claims of group %s: %w", o.value, err)
		}
		return len(list.Items) > 0, nil
	}
	var claim corev1.PersistentVolumeClaim
	if err := ps.c.Live.Get(ctx, client.ObjectKey{Namespace: o.facts.Namespace, Name: o.claim}, &claim); err != nil {
		return false, client.IgnoreNotFound(err)
	}
	return claim.UID == types.UID(key), nil
}

// about is what an Event about a snapshot is on: its claim, or the policy where that is gone or there are several.
func (ps *pass) about(ctx context.Context, o *observed) client.Object {
	if claim := ps.claimOf(ctx, o); claim != nil {
		return claim
	}
	return ps.p.obj
}

// told says what was pruned and why: each on its claim, and all in one Event on the policy.
func (ps *pass) told(ctx context.Context, gone []*retention.Decision) {
	if len(gone) == 0 {
		return
	}
	reasons := map[retention.Reason]int{}
	for _, d := range gone {
		o := ps.byKey[d.Snapshot.Key]
		reasons[d.Reason]++
		prunedTotal.WithLabelValues(append(ps.p.labelValues(), string(d.Reason))...).Inc()
		if about := ps.about(ctx, o); about != ps.p.obj {
			ps.c.Events.Eventf(about, o.obj, corev1.EventTypeNormal, "SnapshotPruned", "Prune", "%s of %s: %s: %s", o.facts.Name,
				d.Snapshot.CreatedAt.UTC().Format(time.RFC3339), d.Reason, kit.Shorten(d.Text()))
		}
	}
	var parts []string
	for _, r := range slices.Sorted(maps.Keys(reasons)) {
		parts = append(parts, fmt.Sprintf("%s %d", r, reasons[r]))
	}
	// The first snapshot makes the Event one of its own: else it would count as the last pass's, text and all.
	ps.c.Events.Eventf(ps.p.obj, ps.byKey[gone[0].Snapshot.Key].obj, corev1.EventTypeNormal, "SnapshotsPruned", "Prune", "%d snapshots pruned: %s; %s first: %s",
		len(gone), strings.Join(parts, ", "), gone[0].Snapshot.Key, kit.Shorten(gone[0].Text()))
}

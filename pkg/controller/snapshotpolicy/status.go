package snapshotpolicy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/retention"
)

const (
	maxProblems = 20
	maxPrunes   = 50
	maxGone     = 500
	maxText     = 500
	shownLines  = 5
)

// report writes the status, if it changed, and the metrics.
func (ps *pass) report(ctx context.Context) error {
	unmanaged, err := ps.countUnmanaged(ctx)
	if err != nil {
		return err
	}
	problems := ps.problems()
	err = ps.c.patchStatus(ctx, ps.p, func(s *v1alpha1.SnapshotPolicyStatus) {
		ps.counts(s, problems, unmanaged)
		ps.planStatus(&s.Plan)
		ps.goneStatus(s)
		ps.conditions(problems)
	})
	if err != nil {
		return err
	}
	ps.measure()
	return nil
}

// problems of sources, by name: why no snapshot of one can be taken, or that its last one failed.
func (ps *pass) problems() []v1alpha1.SourceProblem {
	var list []v1alpha1.SourceProblem
	latest := map[string]*retention.Snapshot{}
	for i := range ps.snapshots {
		s := &ps.snapshots[i]
		if last := latest[s.Source]; last == nil || s.RequestedAt.After(last.RequestedAt) || s.RequestedAt.Equal(last.RequestedAt) && s.Ready {
			latest[s.Source] = s
		}
	}
	for _, s := range ps.ch.order {
		add := func(reason, message string) {
			list = append(list, v1alpha1.SourceProblem{Name: cut(s.title(), 400), Reason: reason, Message: cut(message, maxText)})
		}
		switch last, failure := latest[s.key], ps.mem.failures[s.key]; {
		case s.trouble != nil:
			add(s.trouble.reason, s.trouble.message)
		case failure != nil:
			add(v1alpha1.ReasonRefused, failure.message)
		case last != nil && !last.Ready && last.Error != "":
			add(v1alpha1.ReasonFailed, "snapshot "+last.Key+": "+last.Error)
		}
	}
	slices.SortFunc(list, func(a, b v1alpha1.SourceProblem) int { return strings.Compare(a.Name, b.Name) })
	return list
}

func (ps *pass) counts(s *v1alpha1.SnapshotPolicyStatus, problems []v1alpha1.SourceProblem, unmanaged int) {
	s.Snapshots, s.Unmanaged = 0, int32(unmanaged)
	last := map[string]time.Time{} // by schedule
	var success time.Time
	for i, o := range ps.observed {
		if o.sick != nil {
			s.Unmanaged++
			continue
		}
		s.Snapshots++
		if snap := &ps.snapshots[i]; snap.Ready && snap.CreatedAt.After(success) && !snap.CreatedAt.After(ps.now.Add(retention.SkewLimit)) {
			success = snap.CreatedAt
		}
		for name, at := range o.runs {
			last[name] = retention.LatestRun([]time.Time{last[name], at}, ps.now)
		}
	}
	s.LastSuccessTime = timeOrNil(success)
	var next time.Time
	for _, t := range ps.ticks {
		if ps.p.takes() && !t.Next.IsZero() && (next.IsZero() || t.Next.Before(next)) {
			next = t.Next
		}
	}
	s.Schedules, s.NextRunTime = ps.schedules(last), timeOrNil(next)
	s.Sources = v1alpha1.SourcesStatus{Selected: int32(len(ps.ch.order)), OptedOut: int32(ps.ch.optedOut), Gone: int32(len(ps.gone)),
		Failing: int32(len(problems)), Problems: problems[:min(len(problems), maxProblems)]}
}

// schedules of the policy, and when each last had a snapshot begun.
func (ps *pass) schedules(last map[string]time.Time) []v1alpha1.ScheduleStatus {
	var list []v1alpha1.ScheduleStatus
	for _, t := range ps.ticks {
		list = append(list, v1alpha1.ScheduleStatus{Name: cut(t.Name, 63), When: cut(t.When, 200), Since: ps.since[t.Name],
			LastRunTime: timeOrNil(last[t.Name]), NextRunTime: timeOrNil(t.Next)})
	}
	return list
}

// planStatus is what is left to prune after the pass.
func (ps *pass) planStatus(s *v1alpha1.PlanStatus) {
	s.Next, s.Counts = nil, nil
	for i := range ps.plan.Decisions {
		d := &ps.plan.Decisions[i]
		if d.Action == retention.Prune && ps.mem.deleted[ps.byKey[d.Snapshot.Key].obj.GetUID()] {
			d.Action, d.Reason = retention.Ignore, retention.Deleting
		}
	}
	for _, c := range ps.plan.Counts() {
		s.Counts = append(s.Counts, v1alpha1.DecisionCount{Action: string(c.Action), Reason: string(c.Reason), Count: int32(c.N)})
	}
	for i := range ps.plan.Decisions {
		if d := &ps.plan.Decisions[i]; len(s.Next) < maxPrunes && (d.Action == retention.Prune || d.Action == retention.Wait) {
			s.Next = append(s.Next, v1alpha1.PlannedPrune{Snapshot: cut(d.Snapshot.Key, 400), Reason: string(d.Reason), Message: cut(d.Text(), maxText)})
		}
	}
}

// goneStatus keeps since when sources are gone. What was known stays, so that its time goes on; what is new takes the room that is left.
func (ps *pass) goneStatus(s *v1alpha1.SnapshotPolicyStatus) {
	var list, added []v1alpha1.GoneSource
	known := map[string]bool{}
	for _, g := range s.GoneSources {
		known[g.Key] = true
	}
	if ps.p.after() {
		for key, since := range ps.gone {
			g := v1alpha1.GoneSource{Key: cut(key, 400), Since: since}
			if known[g.Key] {
				list = append(list, g)
			} else {
				added = append(added, g)
			}
		}
	}
	byKey := func(a, b v1alpha1.GoneSource) int { return strings.Compare(a.Key, b.Key) }
	slices.SortFunc(added, byKey)
	list = append(list, added[:min(len(added), max(0, maxGone-len(list)))]...)
	slices.SortFunc(list, byKey)
	s.GoneSources = list
}

// conditions follow the pass.
func (ps *pass) conditions(problems []v1alpha1.SourceProblem) {
	c, p := ps.c, ps.p
	switch class := ps.ownClass(); {
	case len(ps.wrong) > 0:
		lines := make([]string, len(ps.wrong))
		for i, e := range ps.wrong {
			lines[i] = "spec." + e.Error()
		}
		c.ready(p, false, v1alpha1.ReasonInvalid, summary(lines))
	case p.grouped() && ps.groupKind.Empty():
		c.ready(p, false, v1alpha1.ReasonNotInstalled, "spec.template.group: the definitions of VolumeGroupSnapshots are not installed")
	case class != "":
		c.ready(p, false, v1alpha1.ReasonWrongClass, class)
	case p.spec.Suspend:
		c.ready(p, true, v1alpha1.ReasonSuspended, "no snapshots are taken")
	case p.spec.DryRun:
		c.ready(p, true, v1alpha1.ReasonDryRun, "nothing is taken or pruned; status.plan says what would be pruned")
	default:
		c.ready(p, true, v1alpha1.ReasonInForce, "")
	}
	var failing, refused []string
	for _, problem := range problems {
		line := problem.Name + ": " + problem.Message
		if p.grouped() && slices.Contains([]string{"OtherDriver", "OtherNode", "NotBound", "NotChosen", "NoGroup"}, problem.Reason) {
			refused = append(refused, line)
		} else {
			failing = append(failing, line)
		}
	}
	c.notice(p, v1alpha1.SourcesFailing, v1alpha1.ReasonFailed, summary(failing))
	c.notice(p, v1alpha1.GroupRefused, v1alpha1.ReasonRefused, summary(refused))
	ps.notices()
}

// notices of the planner, each type as a condition; that a source's last snapshots go is an Event.
func (ps *pass) notices() {
	lines := map[retention.NoticeType][]string{}
	for _, n := range ps.plan.Notices {
		if n.Type == retention.NoticeSourceGone {
			if ps.p.prunesNow() && ps.mem.news("gone "+n.Source, n.Message) {
				ps.c.Events.Eventf(ps.p.obj, ps.anyOf(n.Source), corev1.EventTypeNormal, "SourceGone", "Prune", "source %s: %s", n.Source, n.Message)
			}
			continue
		}
		lines[n.Type] = append(lines[n.Type], n.Message)
	}
	if !ps.paused.IsZero() {
		waiting := 0
		for i := range ps.plan.Decisions {
			if a := ps.plan.Decisions[i].Action; a == retention.Prune || a == retention.Wait {
				waiting++
			}
		}
		lines[retention.NoticePruneBraked] = []string{fmt.Sprintf("%d snapshots are to be pruned, at most %d in a pass: the next pass that prunes is at %s; if the "+
			"policy was edited wrongly, put it right before", waiting, ps.plan.Limit, ps.paused.UTC().Format(time.RFC3339))}
	}
	for t, kind := range map[retention.NoticeType]string{retention.NoticeClockSkew: v1alpha1.ClockSkew, retention.NoticePruneBraked: v1alpha1.PruneBraked,
		retention.NoticeNoRetention: v1alpha1.NoRetention, retention.NoticePoolPressure: v1alpha1.PoolPressure} {
		ps.c.notice(ps.p, kind, v1alpha1.ReasonWaiting, summary(lines[t]))
	}
}

// anyOf a source's snapshots, to tell one Event from another.
func (ps *pass) anyOf(source string) *snapshotv1.VolumeSnapshot {
	for _, o := range ps.observed {
		if s, ok := o.obj.(*snapshotv1.VolumeSnapshot); ok && sourceOf(o) == source {
			return s
		}
	}
	return nil
}

func timeOrNil(t time.Time) *metav1.Time {
	if t.IsZero() {
		return nil
	}
	m := metav1.NewTime(t.UTC().Truncate(time.Second))
	return &m
}

// summary of many lines: an object is no place for hundreds.
func summary(lines []string) string {
	if len(lines) > shownLines {
		lines = append(slices.Clone(lines[:shownLines]), fmt.Sprintf("and %d more", len(lines)-shownLines))
	}
	return strings.Join(lines, "; ")
}

// cut a text to so many bytes, not within a character.
func cut(text string, most int) string {
	if len(text) <= most {
		return text
	}
	most -= len("…")
	for most > 0 && text[most]&0xc0 == 0x80 {
		most--
	}
	return text[:most] + "…"
}

package controllers

import (
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/retention"
)

const hourlyKeepTwo = `{selector: {matchLabels: {app: db}}, schedules: [{name: hourly, cron: "0 * * * *"}], retention: {keepLast: 2}}`

var db = map[string]string{"app": "db"}

// TestPolicies runs the controller of policies through its life, against an API server, on a simulated clock.
func TestPolicies(t *testing.T) {
	w := start(t)
	t.Run("definitions come later", func(t *testing.T) { definitionsLater(w, w.stage(t)) })
	for _, c := range []struct {
		name string
		run  func(s *stage)
	}{
		{"takes, prunes and holds", takesPrunesHolds},
		{"new ones fail", newOnesFail},
		{"two policies over one PVC", twoPolicies},
		{"deleted: orphan, then adopted", orphanAndAdopt},
		{"deleted: delete", deletePolicy},
		{"PVC deleted and made again", madeAgain},
		{"edited by hand", editedByHand},
		{"clock set back a year", clockBack},
		{"wrong cron and unknown zone", wrongFields},
		{"suspended and dry run", suspended},
		{"annotations of PVCs", annotations},
		{"classes", classes},
		{"cluster policy", clusterPolicy},
		{"one is refused", oneIsRefused},
		{"a driver hangs", slotsEnd},
		{"catches up", catchesUp},
		{"brake", braked},
		{"used by a PVC", usedByClaim},
		{"nothing to do, nothing written", nothingWritten},
	} {
		t.Run(c.name, func(t *testing.T) { c.run(w.stage(t)) })
	}
}

func (s *stage) base() time.Time { return s.clock.Now().Truncate(time.Hour) }

func definitionsLater(w *world, s *stage) {
	s.run(false)
	s.pvc("data", v1alpha1.DriverName, db)
	p := s.policy("hourly", hourlyKeepTwo)
	s.until("the condition", func() (bool, error) {
		err := s.get(p, p.Name)
		return len(p.Status.Conditions) == 1 && p.Status.Conditions[0].Reason == v1alpha1.ReasonNotInstalled, err
	})
	base := s.base()
	w.t = s.t
	w.installSnapshots()
	s.want("after the definitions came", "data", s.hours(base, 0))
	s.condition(p, v1alpha1.Ready, "True", "")
}

func takesPrunesHolds(s *stage) {
	s.run(false)
	claim := s.pvc("data", v1alpha1.DriverName, db)
	s.pvc("else", v1alpha1.DriverName, nil)
	p := s.policy("hourly", hourlyKeepTwo)
	base := s.base()
	s.want("at once: the hour that began after the policy", "data", s.hours(base, 0))
	s.step(time.Hour)
	s.want("an hour later", "data", s.hours(base, 1, 0))
	s.step(time.Hour)
	s.want("pruned", "data", s.hours(base, 2, 1))
	for _, v := range s.all() {
		if v.Labels[retention.LabelPolicy] != string(p.UID) || v.Annotations[retention.AnnotationSource] != string(claim.UID) ||
			v.Annotations[retention.AnnotationPolicy] != "SnapshotPolicy/"+s.namespace+"/hourly" {
			s.t.Errorf("%s: %v %v", v.Name, v.Labels, v.Annotations)
		}
	}
	held := s.oldest("data")
	s.change(&held, false, func() { metav1.SetMetaDataAnnotation(&held.ObjectMeta, retention.AnnotationHold, "audit") })
	s.step(time.Hour)
	s.want("the held one takes no slot", "data", s.hours(base, 3, 2, 1))
	s.step(time.Hour)
	s.want("and stays", "data", s.hours(base, 4, 3, 1))
	s.change(&held, false, func() { delete(held.Annotations, retention.AnnotationHold) })
	s.want("let go", "data", s.hours(base, 4, 3))
	s.event("SnapshotTaken", "for hourly at "+base.UTC().Format(time.RFC3339))
	s.event("SnapshotPruned", "Unneeded: no rule keeps it: past keepLast 2")
	s.event("SnapshotsPruned", "SnapshotPolicy/hourly 1 snapshots pruned: Unneeded 1")
	s.passed() // the status follows what is seen to be gone
	s.condition(p, v1alpha1.Ready, "True", "")
	if st := p.Status; st.Snapshots != 2 || st.Sources.Selected != 1 || !st.NextRunTime.Equal(at(base, 5)) || !st.Schedules[0].LastRunTime.Equal(at(base, 4)) ||
		st.LastSuccessTime == nil || len(st.Plan.Counts) == 0 {
		s.t.Errorf("%+v", st)
	}
	if s.of("else") != "" {
		s.t.Error("a PVC that is not selected was snapshotted")
	}
	labels := map[string]string{"namespace": s.namespace, "policy": "hourly"}
	if n := metric(s.t, "rowan_snapshot_policy_taken_total", labels); n != 5 {
		s.t.Errorf("taken: %v", n)
	}
	if n := metric(s.t, "rowan_snapshot_policy_pruned_total", labels); n != 3 {
		s.t.Errorf("pruned: %v", n)
	}
}

func at(base time.Time, hours int) *metav1.Time {
	t := metav1.NewTime(base.Add(time.Duration(hours) * time.Hour))
	return &t
}

// oldest snapshot of a claim, by its nominal time.
func (s *stage) oldest(claim string) snapshotv1.VolumeSnapshot {
	s.t.Helper()
	return s.oldestOf("of "+claim, func(v snapshotv1.VolumeSnapshot) bool {
		return v.Spec.Source.PersistentVolumeClaimName != nil && *v.Spec.Source.PersistentVolumeClaimName == claim
	})
}

// oldestManaged is the oldest of those with a policy's label.
func (s *stage) oldestManaged() snapshotv1.VolumeSnapshot {
	s.t.Helper()
	return s.oldestOf("with a policy's label", func(v snapshotv1.VolumeSnapshot) bool { return v.Labels[retention.LabelPolicy] != "" })
}

func (s *stage) oldestOf(which string, is func(v snapshotv1.VolumeSnapshot) bool) snapshotv1.VolumeSnapshot {
	s.t.Helper()
	list := slices.DeleteFunc(s.all(), func(v snapshotv1.VolumeSnapshot) bool { return !is(v) })
	if len(list) == 0 {
		s.t.Fatal("no snapshot " + which)
	}
	return slices.MinFunc(list, func(a, b snapshotv1.VolumeSnapshot) int {
		return strings.Compare(a.Annotations[retention.AnnotationSchedules], b.Annotations[retention.AnnotationSchedules])
	})
}

// The newest ready snapshot of a source whose new ones all fail is never pruned; nor is the one before it, though keepLast is 1.
func newOnesFail(s *stage) {
	s.run(false)
	s.pvc("data", v1alpha1.DriverName, db)
	s.pvc("fine", v1alpha1.DriverName, db)
	p := s.policy("hourly", `{selector: {matchLabels: {app: db}}, schedules: [{name: hourly, cron: "0 * * * *"}], retention: {keepLast: 1, failedHistoryLimit: 1}}`)
	base := s.base()
	s.want("the first", "data", s.hours(base, 0))
	s.storage["data"] = "pool default-a is full"
	for n := 1; n <= 6; n++ {
		s.step(time.Hour + time.Minute)
		s.want("the other PVC goes on", "fine", s.hours(base, n))
		s.passed()
		if got := s.of("data"); !strings.HasSuffix(got, s.hours(base, 0)) || strings.Count(got, "!") == 0 || strings.Count(got, "!") > 2 {
			s.t.Fatalf("after %d hours: %s", n, got)
		}
	}
	s.condition(p, v1alpha1.SourcesFailing, "True", "pool default-a is full")
	s.storage["data"] = ""
	s.want("it is well again", "data", s.hours(base, 6))
	s.step(time.Hour)
	s.want("it is well again", "data", s.hours(base, 7))
	s.condition(p, v1alpha1.SourcesFailing, "", "")
}

func twoPolicies(s *stage) {
	s.run(false)
	s.pvc("data", v1alpha1.DriverName, db)
	a := s.policy("a", `{selector: {matchLabels: {app: db}}, schedules: [{name: hourly, cron: "0 * * * *"}], retention: {keepLast: 1}}`)
	b := s.policy("b", hourlyKeepTwo)
	base := s.base()
	s.want("both take one", "data", s.hours(base, 0, 0))
	s.step(time.Hour)
	s.want("each prunes its own", "data", s.hours(base, 1, 1, 0))
	s.step(time.Hour)
	s.want("each prunes its own", "data", s.hours(base, 2, 2, 1))
	s.passed()
	s.want("and no other's", "data", s.hours(base, 2, 2, 1))
	s.must(s.get(a, "a"))
	s.must(s.get(b, "b"))
	if a.Status.Snapshots != 1 || b.Status.Snapshots != 2 {
		s.t.Errorf("%d and %d", a.Status.Snapshots, b.Status.Snapshots)
	}
}

func orphanAndAdopt(s *stage) {
	s.run(false)
	s.pvc("data", v1alpha1.DriverName, db)
	p := s.policy("hourly", hourlyKeepTwo)
	base := s.base()
	s.want("the first", "data", s.hours(base, 0))
	s.step(time.Hour)
	s.want("the second", "data", s.hours(base, 1, 0))
	s.storage["data"] = "-" // in the middle of a run
	s.step(time.Hour)
	s.want("the third is in the making", "data", s.hours(base, 2)+"! "+s.hours(base, 1, 0))
	s.must(s.Delete(s.t.Context(), p))
	s.until("the policy is gone", func() (bool, error) { return apierrors.IsNotFound(s.get(p, "hourly")), nil })
	s.storage["data"] = ""
	s.step(time.Hour)
	s.want("they stay", "data", s.hours(base, 2, 1, 0))
	other := s.policy("other", hourlyKeepTwo)
	s.want("another policy has its own", "data", s.hours(base, 3, 2, 1, 0))
	s.must(s.Delete(s.t.Context(), other))

	again := s.policy("hourly", strings.Replace(hourlyKeepTwo, "{selector", "{adopt: ByName, selector", 1))
	s.want("adopted, and pruned with its own: the newest two of hourly's", "data", s.hours(base, 3, 3, 2))
	for _, v := range s.all() {
		if v.Annotations[retention.AnnotationPolicy] == "SnapshotPolicy/"+s.namespace+"/hourly" && v.Labels[retention.LabelPolicy] != string(again.UID) {
			s.t.Errorf("%s is not adopted: %v", v.Name, v.Labels)
		}
	}
	s.event("Adopted", "snapshots of a policy of the same name")
}

func deletePolicy(s *stage) {
	s.run(false)
	for _, name := range []string{"data", "held", "used"} {
		s.pvc(name, v1alpha1.DriverName, db)
	}
	p := s.policy("hourly", strings.Replace(hourlyKeepTwo, "{selector", "{deletionPolicy: Delete, selector", 1))
	base := s.base()
	for _, name := range []string{"data", "held", "used"} {
		s.want("the first", name, s.hours(base, 0))
	}
	held, used := s.oldest("held"), s.oldest("used")
	s.change(&held, false, func() { metav1.SetMetaDataAnnotation(&held.ObjectMeta, retention.AnnotationHold, "") })
	restore := s.restore("restore", used.Name)
	s.storage["data"] = "-"
	s.step(time.Hour)
	s.want("one is in the making", "data", s.hours(base, 1)+"! "+s.hours(base, 0))
	s.want("another PVC's", "used", s.hours(base, 1, 0))
	s.must(s.Delete(s.t.Context(), p))
	s.want("all go, the newest and the one in the making, too", "data", "")
	s.want("but the held one", "held", s.hours(base, 0))
	s.want("and the used one", "used", s.hours(base, 0))
	s.condition(p, v1alpha1.Deleting, "True", "1 of them in use")
	s.change(restore, false, func() { restore.Spec.VolumeName = "pv-restored" })
	s.step(time.Minute)
	s.want("which goes once it is restored", "used", "")
	s.until("the policy is gone", func() (bool, error) { return apierrors.IsNotFound(s.get(p, "hourly")), nil })
	s.want("the held one stays", "held", s.hours(base, 0))
	s.event("SnapshotsDeleted", "the newest of each PVC among them")
	s.event("SnapshotsStay", "1 snapshots are held")
}

// restore is a claim that is being made from a snapshot.
func (s *stage) restore(name, snapshot string) *corev1.PersistentVolumeClaim {
	s.t.Helper()
	group := snapshotv1.GroupName
	c := s.claimIn(s.namespace, name)
	c.Spec.DataSource = &corev1.TypedLocalObjectReference{APIGroup: &group, Kind: "VolumeSnapshot", Name: snapshot}
	s.create(c)
	return c
}

func madeAgain(s *stage) {
	s.run(false)
	claim := s.pvc("data", v1alpha1.DriverName, db)
	p := s.policy("hourly", `{selector: {matchLabels: {app: db}}, schedules: [{name: hourly, cron: "0 * * * *"}],
		retention: {keepLast: 3, afterSourceDeleted: {keepLast: 1, maxAge: 24h}}}`)
	base := s.base()
	s.want("the first", "data", s.hours(base, 0))
	s.step(time.Hour)
	s.want("the second", "data", s.hours(base, 1, 0))
	s.deleteClaim(claim)
	s.want("the PVC is gone: one stays", "data", s.hours(base, 1))
	again := s.pvc("data", v1alpha1.DriverName, db)
	s.want("made again: it starts afresh", "data", s.hours(base, 1, 1)) // the API server's clock made it before that hour
	s.step(time.Hour)
	s.want("and goes on", "data", s.hours(base, 2, 1, 1))
	sources := map[string]bool{}
	for _, v := range s.all() {
		sources[v.Annotations[retention.AnnotationSource]] = true
	}
	if !sources[string(claim.UID)] || !sources[string(again.UID)] {
		s.t.Errorf("%v", sources)
	}
	s.until("the status says since when", func() (bool, error) { err := s.get(p, p.Name); return len(p.Status.GoneSources) == 1, err })
	s.step(23*time.Hour + time.Second)
	s.want("24 hours after it was found gone, the last one goes, too", "data", s.hours(base, 25, 2, 1))
	s.event("SourceGone", "its last snapshots are pruned")
	s.until("nothing is left of it", func() (bool, error) { err := s.get(p, p.Name); return len(p.Status.GoneSources) == 0, err })
}

func editedByHand(s *stage) {
	s.run(false)
	s.pvc("data", v1alpha1.DriverName, db)
	p := s.policy("hourly", hourlyKeepTwo)
	base := s.base()
	s.want("the first", "data", s.hours(base, 0))
	first := s.oldest("data")
	s.change(&first, false, func() { delete(first.Labels, retention.LabelPolicy) })
	s.passed()
	s.want("a label that was removed is not a reason to take it again", "data", s.hours(base, 0))
	for n := 1; n <= 3; n++ {
		s.step(time.Hour)
		s.reach("the next", func() bool {
			return strings.HasPrefix(s.of("data"), s.hours(base, n)) && !strings.Contains(s.of("data"), "!")
		})
	}
	s.want("it is nobody's: not pruned, and takes no slot", "data", s.hours(base, 3, 2, 0))

	ahead := s.oldestManaged() // of hour 2
	s.change(&ahead, true, func() { ahead.Status.CreationTime = at(base, 10000) })
	for n := 4; n <= 6; n++ {
		s.step(time.Hour)
		s.reach("snapshots are taken on", func() bool {
			return strings.HasPrefix(s.of("data"), s.hours(base, n)) && !strings.Contains(s.of("data"), "!")
		})
	}
	s.passed()
	s.want("and nothing is pruned while one is dated ahead", "data", s.hours(base, 6, 5, 4, 3, 2, 0))
	s.condition(p, v1alpha1.ClockSkew, "True", ahead.Name)
	s.change(&ahead, true, func() { ahead.Status.CreationTime = at(base, 2) })
	s.want("put right", "data", s.hours(base, 6, 5, 0))
	s.condition(p, v1alpha1.ClockSkew, "", "")

	broken := s.oldestManaged() // of hour 5
	s.change(&broken, false, func() { broken.Annotations[retention.AnnotationSchedules] = "nonsense" })
	s.step(time.Hour)
	s.until("what cannot be read is left alone", func() (bool, error) {
		s.play()
		err := s.get(p, p.Name)
		return p.Status.Unmanaged == 2 && p.Status.Snapshots == 2, err
	})
	newest := s.all()
	slices.SortFunc(newest, func(a, b snapshotv1.VolumeSnapshot) int {
		return strings.Compare(b.Annotations[retention.AnnotationSchedules], a.Annotations[retention.AnnotationSchedules])
	})
	for i := range newest {
		if newest[i].Annotations[retention.AnnotationSchedules] != "nonsense" { // the newest: of hour 7
			s.must(s.Delete(s.t.Context(), &newest[i]))
			break
		}
	}
	s.passed()
	for _, v := range s.all() {
		if strings.Contains(v.Annotations[retention.AnnotationSchedules], base.Add(7*time.Hour).UTC().Format(time.RFC3339)) {
			s.t.Error("what was deleted by hand came back")
		}
	}
}

func clockBack(s *stage) {
	s.run(false)
	s.pvc("data", v1alpha1.DriverName, db)
	p := s.policy("hourly", hourlyKeepTwo)
	base := s.base()
	s.want("the first", "data", s.hours(base, 0))
	s.step(time.Hour)
	s.want("the second", "data", s.hours(base, 1, 0))
	s.step(-365 * 24 * time.Hour)
	s.reach("snapshots are taken on", func() bool { return len(s.all()) == 3 && !strings.Contains(s.of("data"), "!") })
	s.condition(p, v1alpha1.ClockSkew, "True", "dated")
	s.step(time.Hour)
	s.reach("and on", func() bool { return len(s.all()) == 4 && !strings.Contains(s.of("data"), "!") })
	s.passed()
	if len(s.all()) != 4 {
		s.t.Errorf("pruned with a wrong clock: %s", s.of("data"))
	}
	s.step(365 * 24 * time.Hour)
	s.want("put right: those of then are the oldest, and go", "data", s.hours(base, 2, 1))
	s.condition(p, v1alpha1.ClockSkew, "", "")
}

func (s *stage) claimIn(namespace, name string) *corev1.PersistentVolumeClaim {
	class := "rowan"
	return &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name}, Spec: corev1.PersistentVolumeClaimSpec{
		StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, Resources: gibi()}}
}

// Status and objects are the same after many passes.
func nothingWritten(s *stage) {
	s.run(false)
	s.pvc("data", v1alpha1.DriverName, db)
	p := s.policy("hourly", hourlyKeepTwo)
	s.want("the first", "data", s.hours(s.base(), 0))
	s.passed()
	s.must(s.get(p, p.Name))
	before, was := p.Status.DeepCopy(), s.all()
	for range 3 {
		s.step(time.Minute)
		s.passed()
	}
	s.must(s.get(p, p.Name))
	for i, v := range s.all() {
		if v.ResourceVersion != was[i].ResourceVersion {
			s.t.Errorf("%s was written", v.Name)
		}
	}
	if !equality.Semantic.DeepEqual(before, &p.Status) {
		s.t.Errorf("%+v\nwas %+v", p.Status, before)
	}
}

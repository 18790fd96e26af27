package controllers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"github.com/prometheus/client_golang/prometheus"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	clocktesting "k8s.io/utils/clock/testing"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
	"sigs.k8s.io/yaml"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/retention"
)

const otherDriver = "other.example.com"

// stage is a namespace of a world, with a clock of its own that begins on an hour to come, and a storage that is played.
type stage struct {
	*world
	t         *testing.T
	namespace string
	// storage says what becomes of a snapshot of a claim: "" ready, "-" nothing, else the error.
	storage map[string]string
	made    map[string]bool // all snapshots that ever were
	aside   func()          // between looks
}

var stages int

// installSnapshots and their classes.
func (w *world) installSnapshots() {
	w.t.Helper()
	for _, name := range []string{"volumesnapshots", "volumesnapshotcontents", "volumesnapshotclasses"} {
		b, err := os.ReadFile(filepath.Join("../../../charts/rowan/files/snapshot-crds", "snapshot.storage.k8s.io_"+name+".yaml"))
		w.must(err)
		w.apply(string(b))
	}
	class := func(name, driver string, policy snapshotv1.DeletionPolicy, is string) *snapshotv1.VolumeSnapshotClass {
		return &snapshotv1.VolumeSnapshotClass{ObjectMeta: metav1.ObjectMeta{Name: name,
			Annotations: map[string]string{"snapshot.storage.kubernetes.io/is-default-class": is}}, Driver: driver, DeletionPolicy: policy}
	}
	for _, c := range []*snapshotv1.VolumeSnapshotClass{class("rowan", v1alpha1.DriverName, snapshotv1.VolumeSnapshotContentDelete, "true"),
		class("keeps", v1alpha1.DriverName, snapshotv1.VolumeSnapshotContentRetain, "false"),
		class("other", otherDriver, snapshotv1.VolumeSnapshotContentDelete, "true")} {
		w.until("a class can be made", func() (bool, error) { err := w.Create(w.t.Context(), c); return err == nil, err })
	}
}

// stage a namespace. The API server's own clock dates what is made, so the stage's begins at the next hour and only goes on from there.
func (w *world) stage(t *testing.T) *stage {
	t.Helper()
	stages++
	s := &stage{world: &world{Client: w.Client, t: t, admin: w.admin, env: w.env, cache: w.cache}, t: t, namespace: fmt.Sprintf("stage-%d", stages),
		storage: map[string]string{}, made: map[string]bool{}}
	s.clock = clocktesting.NewFakePassiveClock(time.Now().Truncate(time.Hour).Add(time.Hour + time.Minute))
	s.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: s.namespace}})
	t.Cleanup(s.clear)
	return s
}

// clear away what other stages would meet.
func (s *stage) clear() {
	ctx := context.WithoutCancel(s.t.Context()) // which is over when a test is cleaned up
	var policies v1alpha1.SnapshotPolicyList
	_ = s.List(ctx, &policies, client.InNamespace(s.namespace))
	for i := range policies.Items {
		p := &policies.Items[i]
		p.Finalizers = nil
		_ = s.Update(ctx, p)
		_ = s.Delete(ctx, p)
	}
	var clusters v1alpha1.ClusterSnapshotPolicyList
	_ = s.List(ctx, &clusters)
	for i := range clusters.Items {
		p := &clusters.Items[i]
		p.Finalizers = nil
		_ = s.Update(ctx, p)
		_ = s.Delete(ctx, p)
	}
}

// pvc that is bound to a volume of a driver.
func (s *stage) pvc(name, driver string, labels map[string]string) *corev1.PersistentVolumeClaim {
	s.t.Helper()
	class := "rowan"
	size := corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}
	modes := []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}
	stages++
	pv := fmt.Sprintf("pv-%s-%s-%d", s.namespace, name, stages)
	s.create(&corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: pv}, Spec: corev1.PersistentVolumeSpec{Capacity: size, AccessModes: modes,
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driver, VolumeHandle: "vol-" + pv}}}})
	c := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name, Labels: labels},
		Spec: corev1.PersistentVolumeClaimSpec{StorageClassName: &class, VolumeName: pv, AccessModes: modes,
			Resources: corev1.VolumeResourceRequirements{Requests: size}}}
	s.create(c)
	s.change(c, true, func() { c.Status.Phase = corev1.ClaimBound })
	return c
}

// deleteClaim at once: nobody here takes its protection away.
func (s *stage) deleteClaim(c *corev1.PersistentVolumeClaim) {
	s.t.Helper()
	s.must(s.get(c, c.Name))
	s.change(c, false, func() { c.Finalizers = nil })
	s.must(s.Delete(s.t.Context(), c))
}

// policy from its spec in YAML.
func (s *stage) policy(name, spec string) *v1alpha1.SnapshotPolicy {
	s.t.Helper()
	p := &v1alpha1.SnapshotPolicy{}
	s.must(yaml.UnmarshalStrict([]byte("spec: "+spec), p))
	p.Name, p.Namespace = name, s.namespace
	s.create(p)
	return p
}

// play the storage: what was asked for becomes ready, or fails, at the stage's time.
func (s *stage) play() {
	s.t.Helper()
	for _, v := range s.all() {
		s.made[v.Name] = true
		if v.Status != nil && v.Status.ReadyToUse != nil && *v.Status.ReadyToUse || v.DeletionTimestamp != nil || v.Spec.Source.PersistentVolumeClaimName == nil {
			continue
		}
		how := s.storage[*v.Spec.Source.PersistentVolumeClaimName]
		if how == "-" || how != "" && v.Status != nil && v.Status.Error != nil {
			continue
		}
		now := metav1.NewTime(s.clock.Now())
		before := v.DeepCopy()
		v.Status = &snapshotv1.VolumeSnapshotStatus{ReadyToUse: new(bool)}
		if how == "" {
			*v.Status.ReadyToUse, v.Status.CreationTime = true, &now
		} else {
			v.Status.Error = &snapshotv1.VolumeSnapshotError{Message: &how, Time: &now}
		}
		_ = s.Status().Patch(s.t.Context(), &v, client.MergeFrom(before)) // it may be deleted meanwhile
	}
}

// all VolumeSnapshots of the stage.
func (s *stage) all() []snapshotv1.VolumeSnapshot {
	s.t.Helper()
	var list snapshotv1.VolumeSnapshotList
	s.must(s.List(s.t.Context(), &list, client.InNamespace(s.namespace)))
	return list.Items
}

// step the clock, and have all policies looked at.
func (s *stage) step(d time.Duration) {
	s.t.Helper()
	s.clock.SetTime(s.clock.Now().Add(d))
	s.poke()
}

func (s *stage) poke() {
	s.t.Helper()
	stages++
	var list v1alpha1.SnapshotPolicyList
	s.must(s.List(s.t.Context(), &list, client.InNamespace(s.namespace)))
	for i := range list.Items {
		s.touch(&list.Items[i])
	}
	var clusters v1alpha1.ClusterSnapshotPolicyList
	s.must(s.List(s.t.Context(), &clusters))
	for i := range clusters.Items {
		s.touch(&clusters.Items[i])
	}
}

func (s *stage) touch(o client.Object) {
	s.t.Helper()
	s.must(s.Patch(s.t.Context(), o, client.RawPatch("application/merge-patch+json",
		[]byte(fmt.Sprintf(`{"metadata":{"annotations":{"test/poke":"%d"}}}`, stages)))))
}

// reach a state, while the storage plays.
func (s *stage) reach(what string, cond func() bool) {
	s.t.Helper()
	s.until(what, func() (bool, error) {
		s.play()
		if s.aside != nil {
			s.aside()
		}
		return cond(), nil
	})
}

// passed waits until a pass over every policy of the stage began after now and is over, while the storage plays: what was to be done is done.
func (s *stage) passed() {
	s.t.Helper()
	for range 3 { // the first may have begun before; the second began after it ended; the third after what the second made was seen
		before := s.passes()
		s.poke()
		s.reach("a pass", func() bool {
			now := s.passes()
			for policy, n := range before {
				if now[policy] <= n {
					return false
				}
			}
			return true
		})
	}
}

// passes over the stage's policies, by name.
func (s *stage) passes() map[string]float64 {
	s.t.Helper()
	found := map[string]float64{}
	var list v1alpha1.SnapshotPolicyList
	s.must(s.List(s.t.Context(), &list, client.InNamespace(s.namespace)))
	for _, p := range list.Items {
		found[p.Namespace+"/"+p.Name] = metric(s.t, "rowan_snapshot_policy_passes_total", map[string]string{"namespace": p.Namespace, "policy": p.Name})
	}
	var clusters v1alpha1.ClusterSnapshotPolicyList
	s.must(s.List(s.t.Context(), &clusters))
	for _, p := range clusters.Items {
		found["/"+p.Name] = metric(s.t, "rowan_snapshot_policy_passes_total", map[string]string{"namespace": "", "policy": p.Name})
	}
	return found
}

// metric of the process: the sum of those with the labels.
func metric(t *testing.T, name string, labels map[string]string) float64 {
	t.Helper()
	families, err := metrics.Registry.(prometheus.Gatherer).Gather()
	if err != nil {
		t.Fatal(err)
	}
	sum := 0.0
	for _, f := range families {
		if f.GetName() != name {
			continue
		}
	each:
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if want, ok := labels[l.GetName()]; ok && want != l.GetValue() {
					continue each
				}
			}
			sum += m.GetCounter().GetValue() + m.GetGauge().GetValue()
		}
	}
	return sum
}

// of a claim: the times of its snapshots, as hours and minutes after the stage began on the hour, newest first; a ! says not ready.
func (s *stage) of(claim string) string {
	s.t.Helper()
	var times []string
	for _, v := range s.all() {
		if c := v.Spec.Source.PersistentVolumeClaimName; c == nil || *c != claim {
			continue
		}
		runs, err := retention.ParseRuns(v.Annotations[retention.AnnotationSchedules])
		s.must(err)
		var last time.Time
		for _, at := range runs {
			if at.After(last) {
				last = at
			}
		}
		text := last.UTC().Format("15:04")
		if v.Status == nil || v.Status.ReadyToUse == nil || !*v.Status.ReadyToUse {
			text += "!"
		}
		times = append(times, last.UTC().Format("20060102 ")+text)
	}
	slices.Sort(times)
	slices.Reverse(times)
	for i := range times {
		times[i] = times[i][len("20060102 "):]
	}
	return strings.Join(times, " ")
}

// hours says how of writes the nominal times of hours n after the stage's first, such as hours(2, 1).
func (s *stage) hours(base time.Time, n ...int) string {
	times := make([]string, len(n))
	for i, h := range n {
		times[i] = base.Add(time.Duration(h) * time.Hour).UTC().Format("15:04")
	}
	return strings.Join(times, " ")
}

func (s *stage) want(what, claim, want string) {
	s.t.Helper()
	s.until(fmt.Sprintf("%s: snapshots of %s are %q", what, claim, want), func() (bool, error) {
		s.play()
		if got := s.of(claim); got != want {
			return false, fmt.Errorf("they are %q", got)
		}
		return true, nil
	})
}

// events of a reason, on objects of the stage.
func (s *stage) events(reason string) []string {
	s.t.Helper()
	var list eventsv1.EventList
	s.must(s.List(s.t.Context(), &list))
	var notes []string
	for _, e := range list.Items {
		if e.Reason == reason && (e.Regarding.Namespace == s.namespace || e.Regarding.Kind == "ClusterSnapshotPolicy") {
			notes = append(notes, e.Regarding.Kind+"/"+e.Regarding.Name+" "+e.Note)
		}
	}
	return notes
}

func (s *stage) event(reason, text string) {
	s.t.Helper()
	s.until("an event "+reason+" with "+text, func() (bool, error) {
		s.play()
		notes := s.events(reason)
		if !slices.ContainsFunc(notes, func(note string) bool { return strings.Contains(note, text) }) {
			return false, fmt.Errorf("there are %q", notes)
		}
		return true, nil
	})
}

// condition of a policy: until it has the status, and its message the text. status "" means that it is not there.
func (s *stage) condition(p *v1alpha1.SnapshotPolicy, kind, status, text string) {
	s.t.Helper()
	var c *metav1.Condition
	s.until(fmt.Sprintf("%s is %q and says %q", kind, status, text), func() (bool, error) {
		s.play()
		err := s.get(p, p.Name)
		if c = meta.FindStatusCondition(p.Status.Conditions, kind); err != nil || c == nil && status == "" {
			return true, err
		}
		if c == nil {
			return false, fmt.Errorf("no such condition: %v", p.Status.Conditions)
		}
		if string(c.Status) != status || !strings.Contains(c.Message, text) {
			return false, fmt.Errorf("it is %s: %s; %+v", c.Status, c.Message, p.Status)
		}
		return true, nil
	})
}

// lease of a node's agent.
func (s *stage) lease(node string) *coordinationv1.Lease {
	s.t.Helper()
	l := &coordinationv1.Lease{ObjectMeta: metav1.ObjectMeta{Namespace: namespace}}
	s.must(s.get(l, v1alpha1.AgentLease(node)))
	return l
}

// object from YAML.
func (s *stage) object(text string) *unstructured.Unstructured {
	s.t.Helper()
	o := &unstructured.Unstructured{}
	s.must(yaml.Unmarshal([]byte(text), &o.Object))
	return o
}

// installed says whether there is such a definition.
func (w *world) installed(name string) bool {
	w.t.Helper()
	m := &metav1.PartialObjectMetadata{}
	m.SetGroupVersionKind(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1", Kind: "CustomResourceDefinition"})
	return w.Get(w.t.Context(), client.ObjectKey{Name: name}, m) == nil
}

package controllers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"
	"sigs.k8s.io/yaml"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/retention"
)

func gibi() corev1.VolumeResourceRequirements {
	return corev1.VolumeResourceRequirements{Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("1Gi")}}
}

// edit a policy's spec.
func (s *stage) edit(p *v1alpha1.SnapshotPolicy, change func(*retention.Policy)) {
	s.t.Helper()
	s.must(s.get(p, p.Name))
	s.change(p, false, func() { change(&p.Spec) })
}

func wrongFields(s *stage) {
	s.run(false)
	s.pvc("data", v1alpha1.DriverName, db)
	p := s.policy("hourly", `{selector: {matchLabels: {app: db}}, timeZone: Europe/Atlantis, schedules: [{name: hourly, cron: "0 61 * * *"}], retention: {keepLast: 1}}`)
	base := s.base()
	s.condition(p, v1alpha1.Ready, "False", "spec.schedules[0].cron: is not a cron expression")
	s.condition(p, v1alpha1.Ready, "False", `spec.timeZone: is "Europe/Atlantis", which is no known time zone`)
	s.step(5 * time.Hour)
	s.passed()
	s.want("none is taken by it", "data", "")
	s.condition(p, v1alpha1.NoRetention, "True", "timeZone is wrong: retention prunes nothing")
	s.edit(p, func(spec *retention.Policy) { spec.TimeZone, spec.Schedules[0].Cron = "Asia/Kathmandu", "30 * * * *" })
	s.condition(p, v1alpha1.Ready, "True", "")
	s.condition(p, v1alpha1.NoRetention, "", "")
	s.passed()
	s.want("what was due before the schedule was put right is not missed", "data", "")
	s.step(time.Hour)
	want := base.Add(5*time.Hour + 45*time.Minute).UTC().Format("15:04") // half past in Kathmandu is a quarter to in UTC
	s.want("put right", "data", want)

	// What the API server refuses, in its words.
	for text, want := range map[string]string{
		"{selector: {}}": "set matchAll: true",
		"{selector: {matchAll: true}, retention: {}}":                                                      "an empty retention prunes nothing",
		"{selector: {matchAll: true}, retention: {maxCount: 2, minKeep: 3}}":                               "minKeep must not be above maxCount",
		"{selector: {matchAll: true}, retention: {keepLast: -1}}":                                          "keepLast",
		"{selector: {matchAll: true}, schedules: [{name: a, cron: '@daily'}, {name: a, cron: '@hourly'}]}": "Duplicate",
	} {
		bad := &v1alpha1.SnapshotPolicy{}
		s.must(yaml.Unmarshal([]byte("spec: "+text), bad))
		if text == "{selector: {matchAll: true}, retention: {}}" {
			bad.Spec.Retention = &retention.Retention{}
		}
		bad.Name, bad.Namespace = "bad", s.namespace
		if err := s.Create(s.t.Context(), bad); err == nil || !strings.Contains(err.Error(), want) {
			s.t.Errorf("%s: %v", text, err)
		}
	}
}

func suspended(s *stage) {
	s.run(false)
	s.pvc("data", v1alpha1.DriverName, db)
	p := s.policy("hourly", hourlyKeepTwo)
	base := s.base()
	for n := range 2 {
		s.want("as usual", "data", s.hours(base, []int{0, 1}[:n+1]...))
		if n == 0 {
			s.want("as usual", "data", s.hours(base, 0))
			s.step(time.Hour)
			s.want("as usual", "data", s.hours(base, 1, 0))
			break
		}
	}
	one := func(spec *retention.Policy) { spec.Retention.KeepLast = 1 }
	s.edit(p, func(spec *retention.Policy) { spec.DryRun = true; one(spec) })
	s.step(time.Hour)
	s.passed()
	s.want("a dry run takes and prunes nothing", "data", s.hours(base, 1, 0))
	s.condition(p, v1alpha1.Ready, "True", "nothing is taken or pruned")
	if next := p.Status.Plan.Next; len(next) != 1 || next[0].Reason != string(retention.Unneeded) || !strings.Contains(next[0].Message, "past keepLast 1") {
		s.t.Errorf("the plan of a dry run: %+v", next)
	}
	s.edit(p, func(spec *retention.Policy) { spec.DryRun, spec.Suspend = false, true })
	s.step(time.Hour)
	s.passed()
	s.want("suspended", "data", s.hours(base, 1, 0))
	s.edit(p, func(spec *retention.Policy) { spec.PruneWhileSuspended = true })
	s.want("pruned while suspended", "data", s.hours(base, 1))
	s.edit(p, func(spec *retention.Policy) { spec.Suspend = false })
	s.want("on again: the last one missed is made up for", "data", s.hours(base, 3))
}

func annotations(s *stage) {
	s.run(false)
	annotated := func(name, value string, labels map[string]string) {
		c := s.pvc(name, v1alpha1.DriverName, labels)
		s.change(c, false, func() { metav1.SetMetaDataAnnotation(&c.ObjectMeta, v1alpha1.PolicyAnnotation, value) })
	}
	annotated("out", "none", db)
	annotated("named", "hourly", nil)
	annotated("both", "other, hourly", db)
	annotated("elsewhere", "other", db)
	annotated("nowhere", "houly", db)
	s.pvc("plain", v1alpha1.DriverName, db)
	p := s.policy("hourly", hourlyKeepTwo)
	s.policy("other", strings.Replace(hourlyKeepTwo, "app: db", "app: none", 1))
	base := s.base()
	s.want("both policies", "both", s.hours(base, 0, 0))
	for name, want := range map[string]string{"named": s.hours(base, 0), "plain": s.hours(base, 0), "elsewhere": s.hours(base, 0), "out": "", "nowhere": ""} {
		s.want("by its annotation", name, want)
	}
	s.event("UnknownSnapshotPolicy", `names "houly"`)
	s.passed()
	s.must(s.get(p, p.Name))
	if st := p.Status.Sources; st.Selected != 3 || st.OptedOut != 3 {
		s.t.Errorf("%+v", st)
	}
}

func classes(s *stage) {
	s.run(false)
	s.pvc("ours", v1alpha1.DriverName, db)
	s.pvc("theirs", otherDriver, db)
	s.pvc("nobodys", "unknown.example.com", db)
	p := s.policy("hourly", hourlyKeepTwo)
	base := s.base()
	s.want("any driver", "ours", s.hours(base, 0))
	s.want("any driver", "theirs", s.hours(base, 0))
	s.condition(p, v1alpha1.SourcesFailing, "True", "nobodys: driver unknown.example.com has no default VolumeSnapshotClass")
	named := func(name string) {
		s.edit(p, func(spec *retention.Policy) { spec.Template.VolumeSnapshotClassName = name })
	}
	named("keeps")
	s.condition(p, v1alpha1.Ready, "False", "keeps has deletionPolicy Retain")
	s.step(time.Hour)
	s.passed()
	s.want("refused", "ours", s.hours(base, 0))
	named("missing")
	s.condition(p, v1alpha1.Ready, "False", "spec.template.volumeSnapshotClassName: there is no VolumeSnapshotClass missing")
	named("rowan")
	s.want("of its driver", "ours", s.hours(base, 1, 0))
	s.passed()
	s.want("of another driver", "theirs", s.hours(base, 0))
	s.condition(p, v1alpha1.SourcesFailing, "True", "theirs: its driver is "+otherDriver)
	s.event("OtherDriver", "PersistentVolumeClaim/theirs SnapshotPolicy hourly takes no snapshot: its driver is "+otherDriver)
}

func clusterPolicy(s *stage) {
	s.run(false)
	second := s.world.stage(s.t)
	ending := s.world.stage(s.t)
	second.clock, ending.clock = s.clock, s.clock
	for _, st := range []*stage{s, second, ending} {
		st.pvc("data", v1alpha1.DriverName, db)
		var ns corev1.Namespace
		s.must(s.Get(s.t.Context(), client.ObjectKey{Name: st.namespace}, &ns))
		if st != second {
			s.change(&ns, false, func() { ns.Labels["tier"] = "prod" })
		}
	}
	var ns corev1.Namespace
	s.must(s.Get(s.t.Context(), client.ObjectKey{Name: ending.namespace}, &ns))
	s.must(s.Delete(s.t.Context(), &ns)) // nobody here ends it
	p := &v1alpha1.ClusterSnapshotPolicy{}
	s.must(yaml.UnmarshalStrict([]byte(`{metadata: {name: everywhere}, spec: {selector: {matchAll: true}, namespaceSelector: {matchLabels: {tier: prod}},
		schedules: [{name: hourly, cron: "0 * * * *"}], retention: {keepLast: 1}}}`), p))
	s.create(p)
	base := s.base()
	s.want("a namespace that is chosen", "data", s.hours(base, 0))
	s.step(time.Hour)
	s.want("pruned", "data", s.hours(base, 1))
	s.passed()
	if got := second.of("data") + ending.of("data"); got != "" {
		s.t.Errorf("in namespaces that are not chosen, or end: %s", got)
	}
	for _, v := range s.all() {
		if v.Annotations[retention.AnnotationPolicy] != "ClusterSnapshotPolicy//everywhere" {
			s.t.Errorf("%v", v.Annotations)
		}
	}
	s.must(s.Get(s.t.Context(), client.ObjectKey{Name: "everywhere"}, p))
	if p.Status.Sources.Selected != 1 {
		s.t.Errorf("%+v", p.Status.Sources)
	}
}

// A PVC whose snapshots are refused holds up no other.
func oneIsRefused(s *stage) {
	refuse := true
	s.runWith(false, func(c client.WithWatch) client.WithWatch {
		return interceptor.NewClient(c, interceptor.Funcs{Create: func(ctx context.Context, c client.WithWatch, o client.Object, opts ...client.CreateOption) error {
			if v, ok := o.(*snapshotv1.VolumeSnapshot); ok && *v.Spec.Source.PersistentVolumeClaimName == "refused" && refuse {
				return errors.New("exceeded quota")
			}
			return c.Create(ctx, o, opts...)
		}})
	})
	s.pvc("refused", v1alpha1.DriverName, db)
	p := s.policy("hourly", strings.Replace(hourlyKeepTwo, "{selector", "{maxConcurrent: 1, selector", 1))
	base := s.base()
	s.event("SnapshotRefused", "exceeded quota")
	s.condition(p, v1alpha1.SourcesFailing, "True", "refused: make VolumeSnapshot")
	s.pvc("a", v1alpha1.DriverName, db)
	s.pvc("b", v1alpha1.DriverName, db)
	s.pvc("c", v1alpha1.DriverName, db)
	for _, name := range []string{"a", "b", "c"} {
		s.want("one after the other", name, s.hours(base, 0))
	}
	refuse = false
	s.step(10 * time.Second) // its back-off
	s.want("it goes on by itself", "refused", s.hours(base, 0))
	s.condition(p, v1alpha1.SourcesFailing, "", "")
}

// A driver that never answers takes its slot for five minutes, not for ever. The API server dates what is asked for by its own clock, so that the
// stage's is kept near it.
func slotsEnd(s *stage) {
	s.clock.SetTime(time.Now())
	s.run(false)
	for _, name := range []string{"a", "b", "c"} {
		s.pvc(name, v1alpha1.DriverName, db)
		s.storage[name] = "-"
	}
	p := s.policy("minutely", strings.Replace(strings.Replace(hourlyKeepTwo, "{selector", "{maxConcurrent: 1, selector", 1), "0 * * * *", "* * * * *", 1))
	hanging := func() int { return strings.Count(s.of("a")+s.of("b")+s.of("c"), "!") }
	s.step(time.Minute)
	s.reach("one hangs", func() bool { return hanging() == 1 })
	s.passed()
	if n := hanging(); n != 1 {
		s.t.Errorf("maxConcurrent is 1, and %d are in the making", n)
	}
	s.step(5 * time.Minute)
	s.reach("the others have their turn all the same", func() bool { return hanging() > 1 })
	s.must(s.Delete(s.t.Context(), p))
}

func catchesUp(s *stage) {
	s.pvc("data", v1alpha1.DriverName, db)
	s.pvc("none", v1alpha1.DriverName, map[string]string{"app": "none"})
	s.pvc("late", v1alpha1.DriverName, map[string]string{"app": "late"})
	s.policy("one", hourlyKeepTwo)
	s.policy("none", `{selector: {matchLabels: {app: none}}, schedules: [{name: hourly, cron: "0 * * * *", catchUp: None}], retention: {keepLast: 2}}`)
	s.policy("late", `{selector: {matchLabels: {app: late}}, schedules: [{name: six, cron: "0 */6 * * *", startingDeadlineSeconds: 600}], retention: {keepLast: 2}}`)
	base := s.base()
	s.clock.SetTime(base) // on the hour
	stop := s.run(false)
	s.want("the first", "data", s.hours(base, 0))
	s.want("the first", "none", s.hours(base, 0))
	stop()
	s.clock.SetTime(base.Add(10*time.Hour + 20*time.Minute))
	s.run(false)
	s.want("of ten missed, the last one", "data", s.hours(base, 10, 0))
	s.passed()
	s.want("none", "none", s.hours(base, 0))
	if got := s.of("late"); strings.Contains(got, " ") && strings.Count(got, ":") > 1 {
		s.t.Errorf("begun after its deadline: %s", got)
	}
	s.event("SnapshotTaken", "made up for")
}

func braked(s *stage) {
	s.run(false)
	for n := range 5 {
		s.pvc(fmt.Sprint("data-", n), v1alpha1.DriverName, db)
	}
	p := s.policy("hourly", strings.Replace(hourlyKeepTwo, "keepLast: 2", "keepLast: 50", 1))
	base := s.base()
	for n := range 6 {
		s.reach("all taken", func() bool { return len(s.all()) == 5*(n+1) && !strings.Contains(s.of("data-0"), "!") })
		s.passed()
		if n < 5 {
			s.step(time.Hour)
		}
	}
	s.edit(p, func(spec *retention.Policy) { spec.Retention.KeepLast = 1 })
	s.reach("ten go", func() bool { return len(s.all()) == 20 })
	s.condition(p, v1alpha1.PruneBraked, "True", "15 snapshots are to be pruned, at most 10 in a pass: the next pass that prunes is at")
	s.passed()
	s.step(time.Minute)
	s.passed()
	if n := len(s.all()); n != 20 {
		s.t.Fatalf("the brake does not hold: %d are left", n)
	}
	s.must(s.get(p, p.Name))
	if p.Status.Plan.BrakedUntil == nil || len(p.Status.Plan.Next) == 0 {
		s.t.Errorf("%+v", p.Status.Plan)
	}
	s.step(5 * time.Minute)
	s.reach("ten more go", func() bool { return len(s.all()) == 10 })
	s.step(5 * time.Minute)
	s.reach("and the rest", func() bool { return len(s.all()) == 5 })
	for n := range 5 {
		s.want("the newest of each stays", fmt.Sprint("data-", n), s.hours(base, 5))
	}
	s.condition(p, v1alpha1.PruneBraked, "", "")
}

func usedByClaim(s *stage) {
	s.run(false)
	s.pvc("data", v1alpha1.DriverName, db)
	s.policy("hourly", strings.Replace(hourlyKeepTwo, "keepLast: 2", "keepLast: 1", 1))
	base := s.base()
	s.want("the first", "data", s.hours(base, 0))
	used := s.oldest("data")
	restore := s.restore("restore", used.Name)
	s.step(time.Hour)
	s.want("it is being restored", "data", s.hours(base, 1, 0))
	s.passed()
	s.want("it is being restored", "data", s.hours(base, 1, 0))
	s.change(restore, false, func() { restore.Spec.VolumeName = "pv-restored" })
	s.step(time.Minute)
	s.want("it is restored", "data", s.hours(base, 1))
}

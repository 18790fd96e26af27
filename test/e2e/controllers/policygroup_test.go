package controllers

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/retention"
)

var groupVersion = schema.GroupVersion{Group: "groupsnapshot.storage.k8s.io", Version: "v1"}

// TestPolicyGroupsAndPools runs what needs more of a cluster: groups, pools that are too full, objects that use snapshots.
func TestPolicyGroupsAndPools(t *testing.T) {
	w := start(t)
	w.installSnapshots()
	t.Run("groups", func(t *testing.T) { groups(w, w.stage(t)) })
	t.Run("pool pressure", func(t *testing.T) { poolPressure(w.stage(t)) })
	t.Run("used by others", func(t *testing.T) { usedByOthers(w, w.stage(t)) })
}

func unstructuredOf(kind string) *unstructured.Unstructured {
	u := &unstructured.Unstructured{}
	u.SetGroupVersionKind(groupVersion.WithKind(kind))
	return u
}

// allGroups of the stage. The storage is played: each becomes ready at the stage's time.
func (s *stage) allGroups() []unstructured.Unstructured {
	s.t.Helper()
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(groupVersion.WithKind("VolumeGroupSnapshotList"))
	s.must(s.List(s.t.Context(), list, client.InNamespace(s.namespace)))
	for i := range list.Items {
		u := &list.Items[i]
		if ready, _, _ := unstructured.NestedBool(u.Object, "status", "readyToUse"); ready {
			continue
		}
		before := u.DeepCopy()
		s.must(unstructured.SetNestedMap(u.Object, map[string]any{"readyToUse": true, "creationTime": s.clock.Now().UTC().Format(time.RFC3339)}, "status"))
		_ = s.Status().Patch(s.t.Context(), u, client.MergeFrom(before))
	}
	return list.Items
}

// groupsOf a label's value: how many, and whether all are ready.
func (s *stage) groupCount(value string) int {
	n := 0
	for _, u := range s.allGroups() {
		labels, _, _ := unstructured.NestedStringMap(u.Object, "spec", "source", "selector", "matchLabels")
		if labels["app"] == value {
			n++
		}
	}
	return n
}

// lagging is a cache that does not show yet that VolumeSnapshots are held.
type lagging struct{ on atomic.Bool }

func (l *lagging) wrap(c client.WithWatch) client.WithWatch {
	return interceptor.NewClient(c, interceptor.Funcs{
		List: func(ctx context.Context, c client.WithWatch, list client.ObjectList, opts ...client.ListOption) error {
			err := c.List(ctx, list, opts...)
			if snapshots, ok := list.(*snapshotv1.VolumeSnapshotList); ok && l.on.Load() {
				for i := range snapshots.Items {
					held := snapshots.Items[i].DeepCopy() // the cache's own are shared
					delete(held.Annotations, retention.AnnotationHold)
					snapshots.Items[i] = *held
				}
			}
			return err
		},
	})
}

func groups(w *world, s *stage) {
	var cache lagging
	s.runWith(false, cache.wrap)
	p := s.policy("grouped", `{selector: {matchLabels: {backup: "yes"}}, template: {group: {byLabel: app}}, schedules: [{name: hourly, cron: "0 * * * *"}],
		retention: {keepLast: 2}}`)
	s.condition(p, v1alpha1.Ready, "False", "VolumeGroupSnapshots are not installed")
	w.t = s.t
	for _, name := range []string{"volumegroupsnapshotclasses", "volumegroupsnapshots"} {
		b, err := os.ReadFile(filepath.Join("../../../charts/rowan/files/snapshot-crds", "groupsnapshot.storage.k8s.io_"+name+".yaml"))
		s.must(err)
		w.apply(string(b))
	}
	class := unstructuredOf("VolumeGroupSnapshotClass")
	class.SetName("rowan-groups")
	class.SetAnnotations(map[string]string{"groupsnapshot.storage.kubernetes.io/is-default-class": "true"})
	class.Object["driver"], class.Object["deletionPolicy"] = v1alpha1.DriverName, "Delete"
	s.until("a class can be made", func() (bool, error) { err := s.Create(s.t.Context(), class); return err == nil, err })

	labels := func(app, backup string) map[string]string { return map[string]string{"app": app, "backup": backup} }
	local := func(claim *corev1.PersistentVolumeClaim, node string) {
		s.create(volume("vol-"+claim.Spec.VolumeName, node, "pool-"+node, "uuid-"+node))
	}
	for _, name := range []string{"data", "log"} {
		local(s.pvc("db-"+name, v1alpha1.DriverName, labels("db", "yes")), "a")
	}
	local(s.pvc("split-1", v1alpha1.DriverName, labels("split", "yes")), "a")
	local(s.pvc("split-2", v1alpha1.DriverName, labels("split", "yes")), "b")
	local(s.pvc("mixed-1", v1alpha1.DriverName, labels("mixed", "yes")), "a")
	s.pvc("mixed-2", otherDriver, labels("mixed", "yes"))
	local(s.pvc("part-1", v1alpha1.DriverName, labels("part", "yes")), "a")
	local(s.pvc("part-2", v1alpha1.DriverName, labels("part", "no")), "a")
	local(s.pvc("alone", v1alpha1.DriverName, map[string]string{"backup": "yes"}), "a")

	s.reach("a group of both", func() bool { return s.groupCount("db") == 1 })
	s.condition(p, v1alpha1.Ready, "True", "")
	for _, text := range []string{"alone: it has no label app", "mixed-2, which is of driver " + otherDriver, "part-2, which the policy's selector does not choose",
		"split-2, which is in pool pool-b on node b"} {
		s.condition(p, v1alpha1.GroupRefused, "True", text)
	}
	g := s.allGroups()[0]
	if g.GetAnnotations()[retention.AnnotationSource] != s.namespace+"/db" || g.GetLabels()[retention.LabelPolicy] != string(p.UID) {
		s.t.Errorf("%v %v", g.GetAnnotations(), g.GetLabels())
	}
	// A member that is held holds its group; members by themselves are nobody's to prune.
	member := &snapshotv1.VolumeSnapshot{ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: "member", Annotations: map[string]string{retention.AnnotationHold: "audit"},
		OwnerReferences: []metav1.OwnerReference{{APIVersion: groupVersion.String(), Kind: "VolumeGroupSnapshot", Name: g.GetName(), UID: g.GetUID()}}}}
	claim := "db-data"
	member.Spec.Source.PersistentVolumeClaimName = &claim
	s.create(member)
	for n := range 4 {
		s.step(time.Hour)
		s.reach("the next", func() bool { return s.groupCount("db") == min(n+2, 3) })
		s.passed()
	}
	if n := s.groupCount("db"); n != 3 { // two by keepLast, and the held one
		s.t.Errorf("%d groups", n)
	}
	cache.on.Store(true)
	s.step(time.Minute)
	s.passed()
	if n := s.groupCount("db"); n != 3 {
		s.t.Errorf("%d groups, after one was held that the cache did not show as held", n)
	}
	cache.on.Store(false)
	s.change(member, false, func() { delete(member.Annotations, retention.AnnotationHold) })
	s.step(time.Minute)
	s.reach("let go", func() bool { return s.groupCount("db") == 2 })
	for _, value := range []string{"split", "mixed", "part"} {
		if n := s.groupCount(value); n != 0 {
			s.t.Errorf("%d groups of %s", n, value)
		}
	}
}

// poolPressure: one at a time, each waiting for the pool's figure; not below minKeep; what frees nothing ends it.
func poolPressure(s *stage) {
	stop := s.run(false)
	claim := s.pvc("data", v1alpha1.DriverName, db)
	s.create(volume("vol-"+claim.Spec.VolumeName, "p", "default-p", "uuid-p"),
		&v1alpha1.Pool{ObjectMeta: metav1.ObjectMeta{Name: "default-p"}, Spec: v1alpha1.PoolSpec{NodeName: "p", PoolSet: "default",
			PoolTemplate: v1alpha1.PoolTemplate{Members: []v1alpha1.Member{{Directory: &v1alpha1.DirectoryMember{Path: "/var/lib/rowan/pool"}}}}}})
	p := s.policy("hourly", `{selector: {matchLabels: {app: db}}, schedules: [{name: hourly, cron: "0 * * * *"}],
		retention: {keepLast: 10, minKeep: 2, poolPressure: {abovePercent: 85, untilPercent: 80}}}`)
	base := s.base()
	usage := func(percent int64) {
		s.t.Helper()
		s.clock.SetTime(s.clock.Now().Add(10 * time.Second))
		s.renew("p", "")
		var l = s.lease("p")
		s.change(l, false, func() {
			l.Annotations[v1alpha1.PoolUsageAnnotation] = v1alpha1.PoolUsageText([]v1alpha1.PoolUsage{{Pool: "default-p", Used: percent << 30, Size: 100 << 30}})
		})
		s.passed()
	}
	usage(50)
	for n := 1; n <= 5; n++ {
		s.step(time.Hour)
		s.reach("the next", func() bool {
			return strings.HasPrefix(s.of("data"), s.hours(base, n)) && !strings.Contains(s.of("data"), "!")
		})
	}
	s.want("none goes", "data", s.hours(base, 5, 4, 3, 2, 1, 0))
	usage(90)
	s.want("one goes", "data", s.hours(base, 5, 4, 3, 2, 1))
	s.passed()
	s.want("no other before the pool's figure", "data", s.hours(base, 5, 4, 3, 2, 1))
	s.condition(p, v1alpha1.PoolPressure, "True", "waiting for the pool's figure")
	usage(86)
	s.want("another goes", "data", s.hours(base, 5, 4, 3, 2))
	usage(79)
	s.passed()
	s.want("until it is below", "data", s.hours(base, 5, 4, 3, 2))
	s.condition(p, v1alpha1.PoolPressure, "", "")
	for _, percent := range []int64{90, 89, 88, 87} {
		usage(percent)
	}
	s.want("not below minKeep", "data", s.hours(base, 5, 4))
	s.condition(p, v1alpha1.PoolPressure, "True", "no snapshot there may be pruned")
	stop()
}

// usedByOthers: CDI's and KubeVirt's objects, where their definitions are installed. (VolumeRollbacks are ended here by their own controller at once.)
func usedByOthers(w *world, s *stage) {
	w.t = s.t
	plain := func(group, version, kind, plural string) {
		if w.installed(plural + "." + group) {
			return
		}
		w.apply(fmt.Sprintf(`{apiVersion: apiextensions.k8s.io/v1, kind: CustomResourceDefinition, metadata: {name: %[4]s.%[1]s}, spec: {group: %[1]s, scope: Namespaced,
names: {kind: %[3]s, plural: %[4]s}, versions: [{name: %[2]s, served: true, storage: true,
schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}}]}}`, group, version, kind, plural))
	}
	plain("cdi.kubevirt.io", "v1beta1", "DataVolume", "datavolumes")
	plain("cdi.kubevirt.io", "v1beta1", "DataSource", "datasources")
	plain("snapshot.kubevirt.io", "v1beta1", "VirtualMachineSnapshotContent", "virtualmachinesnapshotcontents")
	plain("snapshot.kubevirt.io", "v1beta1", "VirtualMachineRestore", "virtualmachinerestores")
	s.run(false)
	s.policy("hourly", strings.Replace(hourlyKeepTwo, "keepLast: 2", "keepLast: 1", 1))
	base := s.base()
	users := map[string]string{
		"datavolume":  `{apiVersion: cdi.kubevirt.io/v1beta1, kind: DataVolume, spec: {source: {snapshot: {name: %[1]s, namespace: %[2]s}}}}`,
		"datasource":  `{apiVersion: cdi.kubevirt.io/v1beta1, kind: DataSource, spec: {source: {snapshot: {name: %[1]s, namespace: %[2]s}}}}`,
		"vmsnapshot":  `{apiVersion: snapshot.kubevirt.io/v1beta1, kind: VirtualMachineSnapshotContent, spec: {volumeBackups: [{volumeSnapshotName: %[1]s}]}}`,
		"vmrestore":   `{apiVersion: snapshot.kubevirt.io/v1beta1, kind: VirtualMachineRestore, status: {restores: [{volumeSnapshotName: %[1]s}]}}`,
		"vmrestored":  `{apiVersion: snapshot.kubevirt.io/v1beta1, kind: VirtualMachineRestore, status: {complete: true, restores: [{volumeSnapshotName: %[1]s}]}}`,
		"datavolume2": `{apiVersion: cdi.kubevirt.io/v1beta1, kind: DataVolume, spec: {source: {snapshot: {name: %[1]s}}}, status: {phase: Succeeded}}`,
	}
	for name := range users {
		s.pvc(name, v1alpha1.DriverName, db)
	}
	for name, text := range users {
		s.want("the first", name, s.hours(base, 0))
		o := s.object(fmt.Sprintf(text, s.oldest(name).Name, s.namespace))
		o.SetName(name)
		o.SetNamespace(s.namespace)
		s.until("a definition", func() (bool, error) { err := s.Create(s.t.Context(), o); return err == nil, err })
	}
	s.passed()
	s.step(time.Hour)
	for name := range users {
		want := s.hours(base, 1, 0)
		if name == "vmrestored" || name == "datavolume2" { // over
			want = s.hours(base, 1)
		}
		s.want("used or not", name, want)
	}
	s.passed()
	for name := range users {
		if name != "vmrestored" && name != "datavolume2" {
			s.want("used", name, s.hours(base, 1, 0))
		}
	}
}

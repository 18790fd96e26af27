package e2e

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/test/e2e/framework"
)

// kibibytes is the size of a claim's file system.
func kibibytes(t *testing.T, f *framework.Flow, p *corev1.Pod, claim string) int {
	t.Helper()
	n, err := strconv.Atoi(f.Run(p, "df -k /data/"+claim+" | tail -n 1 | awk '{print $2}'"))
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// grow asks for more of a claim and waits until it has it.
func grow(t *testing.T, f *framework.Flow, pvc *corev1.PersistentVolumeClaim, size string) {
	t.Helper()
	want := resource.MustParse(size)
	before := pvc.DeepCopy()
	pvc.Spec.Resources.Requests[corev1.ResourceStorage] = want
	if err := f.Patch(t.Context(), pvc, client.MergeFrom(before)); err != nil {
		t.Fatal(err)
	}
	framework.Until(t, f.Cluster, pvc, framework.Wait, func(pvc *corev1.PersistentVolumeClaim) error {
		if have := pvc.Status.Capacity[corev1.ResourceStorage]; have.Cmp(want) < 0 {
			return fmt.Errorf("capacity %s, conditions %v", have.String(), pvc.Status.Conditions)
		}
		return nil
	})
}

// A claim in use grows: as a file system, and as a device. (A kubelet looks at a running pod's file systems every minute or two: most of the time
// is that.)
func TestOnlineGrowth(t *testing.T) {
	t.Parallel() // or its parts would keep all other flows waiting
	for _, fs := range []string{"ext4", "xfs"} {
		t.Run(fs, func(t *testing.T) {
			f := flow(t)
			f.StorageClass(fs, map[string]string{"csi.storage.k8s.io/fstype": fs})
			data := f.Claim(framework.Claim{Name: "data", Class: f.Class(fs)})
			p := f.Pod(framework.Pod{Name: "p", Claims: []string{"data"}})
			if fs == "ext4" && !f.Capable(p.Spec.NodeName, capSysResource) {
				t.Skip("needs CAP_SYS_RESOURCE on the node, which the kernel asks for to grow ext4 in use")
			}
			f.WriteFiles(p, "/data/data/kept")
			want := f.HashFiles(p, "/data/data/kept")
			f.Bound(data)
			grow(t, f, data, "3Gi")
			if n := kibibytes(t, f, p, "data"); n < 2900<<10 {
				t.Errorf("the file system has %d KiB, want about 3 GiB", n)
			}
			if got := f.HashFiles(p, "/data/data/kept"); got != want {
				t.Errorf("files of hash %s, want %s", got, want)
			}
		})
	}
	t.Run("device", func(t *testing.T) {
		f := flow(t)
		disk := f.Claim(framework.Claim{Name: "disk", Block: true})
		p := f.Pod(framework.Pod{Name: "p", Blocks: []string{"disk"}})
		f.Bound(disk)
		grow(t, f, disk, "3Gi")
		if got := f.Run(p, "blockdev --getsize64 /dev/rowan/disk"); got != fmt.Sprint(3<<30) {
			t.Errorf("the device has %s bytes, want 3 GiB", got)
		}
	})
}

// capSysResource is the number of CAP_SYS_RESOURCE.
const capSysResource = 24

// Claims of 10 MiB, as virtual machines' TPM state has.
func TestSmallClaims(t *testing.T) {
	f := flow(t)
	f.Claim(framework.Claim{Name: "tpm", Size: "10Mi"})
	p := f.Pod(framework.Pod{Name: "p", Claims: []string{"tpm"}})
	f.Run(p, "echo state > /data/tpm/f; sync")
	f.Snapshot("s", "tpm")
	f.Claim(framework.Claim{Name: "restored", Size: "10Mi", Snapshot: "s"})
	r := f.Pod(framework.Pod{Name: "r", Claims: []string{"restored"}})
	if got := f.Run(r, "cat /data/restored/f"); got != "state" {
		t.Errorf("the restored file says %q", got)
	}
}

// An ephemeral volume lives with its pod.
func TestEphemeral(t *testing.T) {
	f := flow(t)
	p := f.Pod(framework.Pod{Name: "p", Change: func(s *corev1.PodSpec) {
		s.Volumes = []corev1.Volume{{Name: "scratch", VolumeSource: corev1.VolumeSource{Ephemeral: &corev1.EphemeralVolumeSource{
			VolumeClaimTemplate: &corev1.PersistentVolumeClaimTemplate{Spec: framework.Claim{}.Object("").Spec},
		}}}}
		s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "scratch", MountPath: "/data/scratch"}}
	}})
	f.WriteFiles(p, "/data/scratch/x")
	pvc := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "p-scratch", Namespace: f.Namespace}}
	pv := f.Bound(pvc)
	f.Remove(p)
	framework.Gone(t, f.Cluster, pvc)
	framework.Gone(t, f.Cluster, pv)
}

// ReadWriteOncePod: a second pod waits until the first is gone.
func TestReadWriteOncePod(t *testing.T) {
	f := flow(t)
	f.Claim(framework.Claim{Name: "data", Mode: corev1.ReadWriteOncePod})
	p := f.Pod(framework.Pod{Name: "first", Claims: []string{"data"}})
	second := f.AskPod(framework.Pod{Name: "second", Claims: []string{"data"}})
	framework.Until(t, f.Cluster, second, framework.Wait, func(p *corev1.Pod) error {
		for _, c := range p.Status.Conditions {
			if c.Type == corev1.PodScheduled && c.Status == corev1.ConditionFalse {
				return nil
			}
		}
		return fmt.Errorf("phase %s", p.Status.Phase)
	})
	f.Remove(p)
	f.Running(second)
}

// A StatefulSet whose template restores a snapshot.
func TestStatefulSet(t *testing.T) {
	f := flow(t)
	f.Claim(framework.Claim{Name: "data"})
	p := f.Pod(framework.Pod{Name: "writer", Claims: []string{"data"}})
	f.WriteFiles(p, "/data/data/kept")
	want := f.HashFiles(p, "/data/data/kept")
	f.Snapshot("s", "data")
	template := framework.Claim{Name: "state", Snapshot: "s"}.Object("")
	labels := map[string]string{"app": "db"}
	pod := framework.Pod{Name: "db", Labels: labels, Change: func(s *corev1.PodSpec) {
		s.Containers[0].VolumeMounts = []corev1.VolumeMount{{Name: "state", MountPath: "/data/state"}}
	}}.Object(f)
	set := &appsv1.StatefulSet{
		ObjectMeta: metav1.ObjectMeta{Name: "db", Namespace: f.Namespace},
		Spec: appsv1.StatefulSetSpec{
			Replicas: ptr.To(int32(3)), PodManagementPolicy: appsv1.ParallelPodManagement, Selector: &metav1.LabelSelector{MatchLabels: labels},
			Template:             corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: labels}, Spec: pod.Spec},
			VolumeClaimTemplates: []corev1.PersistentVolumeClaim{*template},
			PersistentVolumeClaimRetentionPolicy: &appsv1.StatefulSetPersistentVolumeClaimRetentionPolicy{
				WhenDeleted: appsv1.DeletePersistentVolumeClaimRetentionPolicyType, WhenScaled: appsv1.DeletePersistentVolumeClaimRetentionPolicyType,
			},
		},
	}
	if err := f.Create(t.Context(), set); err != nil {
		t.Fatal(err)
	}
	framework.Until(t, f.Cluster, set, framework.Wait, func(s *appsv1.StatefulSet) error {
		if s.Status.ReadyReplicas != 3 {
			return fmt.Errorf("%d of 3 pods ready", s.Status.ReadyReplicas)
		}
		return nil
	})
	for i := range 3 {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("db-%d", i), Namespace: f.Namespace}}
		if err := f.Get(t.Context(), framework.Key(p), p); err != nil {
			t.Fatal(err)
		}
		if got := f.HashFiles(p, "/data/state/kept"); got != want {
			t.Errorf("pod %s has files of hash %s, want %s", p.Name, got, want)
		}
	}
}

// Wrong parameters of a class: the claim's event says which, and what there is.
func TestWrongParameters(t *testing.T) {
	f := flow(t)
	for name, c := range map[string]struct {
		parameters map[string]string
		want       string
	}{
		"mode":    {map[string]string{"mode": "raid"}, `mode "raid": use row`},
		"fs":      {map[string]string{"csi.storage.k8s.io/fstype": "btrfs"}, "btrfs"},
		"unknown": {map[string]string{"replicas": "3"}, `unknown parameter "replicas"`},
		"poolset": {map[string]string{"poolSet": "nowhere"}, "nowhere"},
	} {
		f.StorageClass(name, c.parameters)
		pvc := f.Claim(framework.Claim{Name: name, Class: f.Class(name)})
		f.AskPod(framework.Pod{Name: name, Claims: []string{name}})
		e := framework.UntilEvent(t, f.Cluster, pvc, c.want)
		if !strings.Contains(e.Message, "rpc error") && e.Type != corev1.EventTypeWarning {
			t.Errorf("%s: event %s %s: %s", name, e.Type, e.Reason, e.Message)
		}
	}
}

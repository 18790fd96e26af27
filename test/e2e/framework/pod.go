package framework

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// Where a pod has the claims it uses: file systems at DataDir and the claim's name, devices at DeviceDir and the claim's name.
const (
	DataDir   = "/data/"
	DeviceDir = "/dev/rowan/"
)

// Pod is a pod that uses claims and waits to be told what to do. Zero fields take what users take.
type Pod struct {
	Name   string
	Claims []string // with a file system
	Blocks []string // as devices
	Node   string   // by the scheduler's node selector
	Labels map[string]string
	Change func(*corev1.PodSpec)
}

// Object is the pod as an object.
func (q Pod) Object(f *Flow) *corev1.Pod {
	p := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: q.Name, Namespace: f.Namespace, Labels: q.Labels},
		Spec: corev1.PodSpec{
			TerminationGracePeriodSeconds: ptr.To(int64(1)),
			Containers: []corev1.Container{{
				Name: "main", Image: f.Image, ImagePullPolicy: corev1.PullNever,
				Command: []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 1000 & wait; done"},
			}},
		},
	}
	c := &p.Spec.Containers[0]
	for _, name := range q.Claims {
		c.VolumeMounts = append(c.VolumeMounts, corev1.VolumeMount{Name: name, MountPath: DataDir + name})
	}
	for _, name := range q.Blocks {
		c.VolumeDevices = append(c.VolumeDevices, corev1.VolumeDevice{Name: name, DevicePath: DeviceDir + name})
	}
	for _, name := range append(append([]string{}, q.Claims...), q.Blocks...) {
		p.Spec.Volumes = append(p.Spec.Volumes, corev1.Volume{Name: name, VolumeSource: corev1.VolumeSource{
			PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: name},
		}})
	}
	if q.Node != "" {
		p.Spec.NodeSelector = map[string]string{corev1.LabelHostname: q.Node}
	}
	if q.Change != nil {
		q.Change(&p.Spec)
	}
	return p
}

// AskPod makes a pod and does not wait.
func (f *Flow) AskPod(q Pod) *corev1.Pod {
	f.Helper()
	p := q.Object(f)
	must(f, f.Create(f.Context(), p))
	return p
}

// Pod makes a pod and waits until it runs.
func (f *Flow) Pod(q Pod) *corev1.Pod {
	f.Helper()
	p := f.AskPod(q)
	f.step()
	return f.Running(p)
}

// Running waits until a pod runs.
func (f *Flow) Running(p *corev1.Pod) *corev1.Pod {
	f.Helper()
	return Until(f, f.Cluster, p, Wait, func(p *corev1.Pod) error {
		if podReady(p) {
			return nil
		}
		return fmt.Errorf("phase %s: %s", p.Status.Phase, podWhy(p))
	})
}

func podReady(p *corev1.Pod) bool {
	return slices.ContainsFunc(p.Status.Conditions, func(c corev1.PodCondition) bool {
		return c.Type == corev1.PodReady && c.Status == corev1.ConditionTrue
	})
}

func podWhy(p *corev1.Pod) string {
	var why []string
	for _, c := range p.Status.Conditions {
		if c.Status != corev1.ConditionTrue {
			why = append(why, fmt.Sprintf("%s: %s %s", c.Type, c.Reason, c.Message))
		}
	}
	return strings.Join(why, "; ")
}

// Remove deletes an object and waits until it is gone.
func (f *Flow) Remove(o client.Object) {
	f.Helper()
	must(f, f.Delete(f.Context(), o))
	f.step()
	Gone(f, f.Cluster, o)
}

// Try runs a shell command in a pod's first container.
func (f *Flow) Try(p *corev1.Pod, command string) (string, error) {
	return f.exec(f.Context(), p, "sh", "-ec", command)
}

// exec runs a program in a pod's first container.
func (c *Cluster) exec(ctx context.Context, p *corev1.Pod, words ...string) (string, error) {
	cs, err := kubernetes.NewForConfig(c.Config)
	if err != nil {
		return "", err
	}
	req := cs.CoreV1().RESTClient().Post().Resource("pods").Namespace(p.Namespace).Name(p.Name).SubResource("exec").VersionedParams(
		&corev1.PodExecOptions{Container: p.Spec.Containers[0].Name, Command: words, Stdout: true, Stderr: true}, scheme.ParameterCodec)
	e, err := remotecommand.NewWebSocketExecutor(c.Config, "GET", req.URL().String())
	if err != nil {
		return "", err
	}
	var out, errs bytes.Buffer
	if err := e.StreamWithContext(ctx, remotecommand.StreamOptions{Stdout: &out, Stderr: &errs}); err != nil {
		return out.String(), fmt.Errorf("run %q in pod %s: %w: %s", words, p.Name, err, errs.String())
	}
	return strings.TrimSpace(out.String()), nil
}

// Run runs a shell command in a pod's first container; the test ends if it fails.
func (f *Flow) Run(p *corev1.Pod, command string) string {
	f.Helper()
	out, err := f.Try(p, command)
	must(f, err)
	return out
}

// WriteFiles writes a tree of files of random bytes below a folder of a pod and flushes it.
func (f *Flow) WriteFiles(p *corev1.Pod, dir string) {
	f.Helper()
	f.Run(p, fmt.Sprintf(`mkdir -p %[1]s/a/b; for i in 1 2 3 4 5 6 7 8; do head -c $((i*300000+i)) /dev/urandom > %[1]s/a/$i; head -c $i /dev/urandom > %[1]s/a/b/$i; done; sync`, dir))
}

// HashFiles is one hash over all files below a folder of a pod, their names included.
func (f *Flow) HashFiles(p *corev1.Pod, dir string) string {
	f.Helper()
	return f.Run(p, fmt.Sprintf(`set -o pipefail; cd %s; find . -type f | grep -v lost+found | sort | xargs sha256sum | sha256sum`, dir))
}

// HashDevice is the hash of a device's first bytes, read past any cache of the pod's.
func (f *Flow) HashDevice(p *corev1.Pod, claim string, mebibytes int) string {
	f.Helper()
	return f.HashDeviceAt(p, claim, 0, mebibytes)
}

// HashDeviceAt is the hash of that many MiB of a device from one MiB on, read past any cache of the pod's.
func (f *Flow) HashDeviceAt(p *corev1.Pod, claim string, at, mebibytes int) string {
	f.Helper()
	return f.Run(p, fmt.Sprintf(`set -o pipefail; dd if=%s%s bs=1M skip=%d count=%d iflag=direct 2>/dev/null | sha256sum`, DeviceDir, claim, at, mebibytes))
}

// WriteDevice writes that many MiB of random bytes to a device from one MiB on, past any cache of the pod's, and gives their hash.
func (f *Flow) WriteDevice(p *corev1.Pod, claim string, at, mebibytes int) string {
	f.Helper()
	return f.Run(p, fmt.Sprintf(`set -o pipefail; rm -f /tmp/pipe /tmp/hash; mkfifo /tmp/pipe; sha256sum < /tmp/pipe > /tmp/hash &
		head -c %[4]dm /dev/urandom | tee /tmp/pipe | dd of=%[1]s%[2]s bs=1M seek=%[3]d count=%[4]d iflag=fullblock oflag=direct conv=notrunc,fsync 2>/dev/null
		wait; cat /tmp/hash`, DeviceDir, claim, at, mebibytes))
}

// Key is an object's key.
func Key(o client.Object) client.ObjectKey { return client.ObjectKeyFromObject(o) }

// Reachable waits until commands run in a pod: a kubelet that was just started does not know its pods yet.
func (f *Flow) Reachable(p *corev1.Pod) {
	f.Helper()
	deadline := time.After(Wait)
	for {
		_, err := f.Try(p, "true")
		if err == nil {
			return
		}
		select {
		case <-deadline:
			f.Fatal(err)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

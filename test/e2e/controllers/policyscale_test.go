package controllers

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/utils/ptr"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/retention"
)

var policyScale = flag.Bool("policy.scale", false, "measure a policy over 1,000 PVCs with 50 snapshots each (make policy-scale)")

// The bars, and what they are of.
const (
	scaleClaims    = 1000
	scaleEach      = 50
	scaleCPU       = 2.0 // seconds, one full pass
	scaleMemory    = 512 << 20
	scaleNamespace = "scale"
)

// TestPolicyScale runs the real rowan-controller beside a real API server that has 1,000 PVCs with 50 snapshots each, and one policy of five schedules
// over all. The snapshots are put into etcd as the API server would; all else goes the usual way.
func TestPolicyScale(t *testing.T) {
	if !*policyScale {
		t.Skip("make policy-scale measures it")
	}
	w := start(t)
	w.installSnapshots()
	s := w.stage(t)
	s.namespace = scaleNamespace
	s.create(&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: scaleNamespace}})
	var claims []*corev1.PersistentVolumeClaim
	for i := range scaleClaims {
		claims = append(claims, s.pvc(fmt.Sprintf("data-%d", i), v1alpha1.DriverName, db))
	}
	far := (time.Now().Minute() + 30) % 60 // nothing is due while it is measured
	p := s.policy("all", fmt.Sprintf(`{selector: {matchLabels: {app: db}}, timeZone: Europe/Berlin, schedules: [{name: s0, cron: "%[1]d * * * *", jitter: 5m},
		{name: s1, cron: "%[1]d */2 * * *"}, {name: s2, cron: "%[1]d 2 * * *"}, {name: s3, cron: "%[1]d 3 * * sun"}, {name: s4, cron: "%[1]d 4 1 * *"}],
		retention: {keepLast: 50, hourly: 24, daily: 7, weekly: 4, monthly: 12, yearly: 2, within: 1h, maxAge: 80000h, maxCount: 200}}`, far))
	s.fill(p, claims)
	s.watched(&snapshotv1.VolumeSnapshotList{}, &snapshotv1.VolumeSnapshotContentList{})
	c := s.startController()
	s.until("the controller answers", func() (bool, error) { return c.metric("process_cpu_seconds_total") >= 0, nil })
	for begun := time.Now(); p.Status.Snapshots != scaleClaims*scaleEach && time.Since(begun) < 3*time.Minute; s.must(s.get(p, p.Name)) {
		c.rest()
	}
	if p.Status.Snapshots != scaleClaims*scaleEach || p.Status.Sources.Selected != scaleClaims {
		t.Fatalf("not all are counted: %+v", p.Status)
	}
	bars := bars{t: t}
	bars.at("start_cpu_seconds", c.metric("process_cpu_seconds_total"), 0)
	worst, writes := 0.0, 0.0
	for range 3 {
		cpu, before := c.metric("process_cpu_seconds_total"), c.requests("POST", "PUT", "PATCH", "DELETE")
		passes, reads := c.metric("rowan_snapshot_policy_passes_total"), c.requests("GET")
		c.pass(s, p)
		took := c.metric("process_cpu_seconds_total") - cpu
		fmt.Printf("%.2f s of CPU, %.0f passes, %.0f reads\n", took, c.metric("rowan_snapshot_policy_passes_total")-passes, c.requests("GET")-reads)
		worst = max(worst, took)
		writes += c.requests("POST", "PUT", "PATCH", "DELETE") - before
	}
	bars.at("pass_cpu_seconds", worst, scaleCPU)
	bars.at("pass_writes", writes, 0.5)

	// One snapshot of each PVC more than is kept: that many deletions, and few writes of status. (Events are what is posted.)
	deletes, patches := c.requests("DELETE"), c.requests("PUT", "PATCH")
	s.edit(p, func(spec *retention.Policy) { spec.Retention = &retention.Retention{KeepLast: scaleEach - 1} })
	deadlineAt := time.Now().Add(3 * time.Minute)
	for p.Status.Snapshots != scaleClaims*(scaleEach-1) && time.Now().Before(deadlineAt) {
		c.rest()
		s.must(s.get(p, p.Name))
	}
	bars.at("pruned_missing", float64(scaleClaims*scaleEach-int(p.Status.Snapshots)-scaleClaims), 0.5)
	bars.at("prune_deletes_extra", c.requests("DELETE")-deletes-scaleClaims, 0.5)
	bars.at("prune_patches", c.requests("PUT", "PATCH")-patches, 100)
	bars.at("memory_peak_bytes", c.peak(), scaleMemory)
}

// bars prints figures, and fails where one is missed. A bar of 0 is none.
type bars struct{ t *testing.T }

func (b bars) at(name string, value, bar float64) {
	b.t.Helper()
	if bar == 0 {
		fmt.Printf("%s %.6g\n", name, value)
		return
	}
	fmt.Printf("%s %.6g (bar %.6g)\n", name, value, bar)
	if value < 0 || value > bar {
		b.t.Errorf("%s is %.6g, the bar is %.6g", name, value, bar)
	}
}

// fill etcd with the snapshots and their contents.
func (s *stage) fill(p *v1alpha1.SnapshotPolicy, claims []*corev1.PersistentVolumeClaim) {
	s.t.Helper()
	ready, className := true, "rowan"
	now := time.Now().Truncate(time.Second)
	var puts []map[string]any
	put := func(key string, o any) {
		value, err := json.Marshal(o)
		s.must(err)
		puts = append(puts, map[string]any{"requestPut": map[string]string{"key": base64.StdEncoding.EncodeToString([]byte("/registry/" + key)),
			"value": base64.StdEncoding.EncodeToString(value)}})
		if len(puts) == 128 {
			s.txn(puts)
			puts = puts[:0]
		}
	}
	for i, claim := range claims {
		for k := range scaleEach {
			at := metav1.NewTime(now.Add(-time.Duration(k*k)*time.Hour - time.Minute))
			nominal := at.Truncate(time.Hour)
			name, uid := retention.SnapshotName(string(p.UID), string(claim.UID), "s0", nominal), types.UID(fmt.Sprintf("00000000-0000-0000-%04d-%012d", k, i))
			content, size, handle, unix := "snapcontent-"+string(uid), claim.Spec.Resources.Requests.Storage().DeepCopy(), fmt.Sprintf("snap-%d-%d", i, k), at.UnixNano()
			put("snapshot.storage.k8s.io/volumesnapshots/"+s.namespace+"/"+name, &snapshotv1.VolumeSnapshot{
				TypeMeta: metav1.TypeMeta{APIVersion: snapshotv1.SchemeGroupVersion.String(), Kind: "VolumeSnapshot"},
				ObjectMeta: metav1.ObjectMeta{Namespace: s.namespace, Name: name, UID: uid, CreationTimestamp: at, Generation: 1,
					Labels: map[string]string{retention.LabelPolicy: string(p.UID)},
					Annotations: map[string]string{retention.AnnotationPolicy: "SnapshotPolicy/" + s.namespace + "/" + p.Name, retention.AnnotationSource: string(claim.UID),
						retention.AnnotationSchedules: retention.RunsText(map[string]time.Time{"s0": nominal})},
					ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "snapshot-controller", Operation: metav1.ManagedFieldsOperationUpdate, APIVersion: "snapshot.storage.k8s.io/v1",
						Time: &at, FieldsType: "FieldsV1", FieldsV1: metav1.NewFieldsV1(`{"f:status":{".":{},"f:creationTime":{},"f:readyToUse":{}}}`)}}},
				Spec:   snapshotv1.VolumeSnapshotSpec{Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: &claim.Name}, VolumeSnapshotClassName: &className},
				Status: &snapshotv1.VolumeSnapshotStatus{BoundVolumeSnapshotContentName: &content, CreationTime: &at, ReadyToUse: &ready, RestoreSize: &size}})
			put("snapshot.storage.k8s.io/volumesnapshotcontents/"+content, &snapshotv1.VolumeSnapshotContent{
				TypeMeta:   metav1.TypeMeta{APIVersion: snapshotv1.SchemeGroupVersion.String(), Kind: "VolumeSnapshotContent"},
				ObjectMeta: metav1.ObjectMeta{Name: content, UID: "c" + uid, CreationTimestamp: at, Generation: 1},
				Spec: snapshotv1.VolumeSnapshotContentSpec{VolumeSnapshotRef: corev1.ObjectReference{Kind: "VolumeSnapshot", Namespace: s.namespace, Name: name, UID: uid},
					DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete, Driver: v1alpha1.DriverName, VolumeSnapshotClassName: &className,
					Source: snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &claim.Spec.VolumeName}},
				Status: &snapshotv1.VolumeSnapshotContentStatus{SnapshotHandle: &handle, CreationTime: &unix, ReadyToUse: &ready}})
		}
	}
	if len(puts) > 0 {
		s.txn(puts)
	}
}

// watched waits until the API server can serve watches of these kinds: it reads them from etcd when they are first asked for, which takes it ten seconds
// for so many, and the controller, told to come back meanwhile, would have the last of its start in what is measured.
func (s *stage) watched(kinds ...client.ObjectList) {
	s.t.Helper()
	c, err := client.NewWithWatch(s.admin, client.Options{Scheme: s.scheme()})
	s.must(err)
	for _, kind := range kinds {
		s.until(fmt.Sprintf("%T can be watched", kind), func() (bool, error) {
			w, err := c.Watch(s.t.Context(), kind, &client.ListOptions{Raw: &metav1.ListOptions{SendInitialEvents: ptr.To(true),
				ResourceVersionMatch: metav1.ResourceVersionMatchNotOlderThan, AllowWatchBookmarks: true}})
			if apierrors.IsTooManyRequests(err) {
				return false, nil
			}
			if err != nil {
				return false, err
			}
			defer w.Stop()
			event := <-w.ResultChan()
			return event.Type == watch.Added, nil
		})
	}
}

// txn puts into etcd through its gateway.
func (s *stage) txn(puts []map[string]any) {
	s.t.Helper()
	body, err := json.Marshal(map[string]any{"success": puts})
	s.must(err)
	r, err := http.Post(s.env.ControlPlane.Etcd.URL.String()+"/v3/kv/txn", "application/json", bytes.NewReader(body))
	s.must(err)
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(r.Body)
		s.t.Fatalf("etcd: %s: %s", r.Status, text)
	}
}

// process is a rowan-controller.
type process struct {
	t   *testing.T
	cmd *exec.Cmd
	url string
}

func (s *stage) startController() *process {
	s.t.Helper()
	dir := s.t.TempDir()
	program, kubeconfig := filepath.Join(dir, "rowan-controller"), filepath.Join(dir, "kubeconfig")
	out, err := exec.Command("go", "build", "-o", program, "../../../cmd/rowan-controller").CombinedOutput()
	if err != nil {
		s.t.Fatalf("%v: %s", err, out)
	}
	s.must(os.WriteFile(kubeconfig, s.env.KubeConfig, 0o600))
	const address = "127.0.0.1:19810"
	cmd := exec.Command(program, "--namespace", namespace, "--health-address", "127.0.0.1:19809", "--metrics-address", address, "--v", "0")
	cmd.Env, cmd.Stderr = append(os.Environ(), "KUBECONFIG="+kubeconfig, "GOMEMLIMIT=400MiB"), os.Stderr // the limit is the chart's
	s.must(cmd.Start())
	s.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
	return &process{s.t, cmd, "http://" + address + "/metrics"}
}

// metric of the process; -1: it does not answer yet.
func (p *process) metric(name string) float64 {
	r, err := http.Get(p.url)
	if err != nil {
		return -1
	}
	defer r.Body.Close()
	text, _ := io.ReadAll(r.Body)
	return sumOf(string(text), name, func(string) bool { return true })
}

// sumOf the series of a metric whose labels are wanted.
func sumOf(text, name string, wanted func(labels string) bool) float64 {
	sum := 0.0
	for line := range strings.Lines(text) {
		rest, ok := strings.CutPrefix(strings.TrimSpace(line), name)
		if !ok || rest == "" || rest[0] != ' ' && rest[0] != '{' || !wanted(rest) {
			continue
		}
		n, err := strconv.ParseFloat(rest[strings.LastIndexByte(rest, ' ')+1:], 64)
		if err == nil {
			sum += n
		}
	}
	return sum
}

// rest waits until the process has nothing to do: no processor time to speak of for two seconds.
func (p *process) rest() {
	p.t.Helper()
	quiet := 0
	last := p.metric("process_cpu_seconds_total")
	tick := time.NewTicker(500 * time.Millisecond)
	defer tick.Stop()
	for range 600 {
		<-tick.C
		now := p.metric("process_cpu_seconds_total")
		if now-last < 0.05 {
			quiet++
		} else {
			quiet = 0
		}
		if last = now; quiet >= 4 {
			return
		}
	}
	p.t.Fatal("the controller does not come to rest")
}

// pass has one pass made, and waits until it is over.
func (p *process) pass(s *stage, policy *v1alpha1.SnapshotPolicy) {
	s.t.Helper()
	before := p.metric("rowan_snapshot_policy_passes_total")
	stages++
	s.touch(policy)
	s.until("a pass", func() (bool, error) { return p.metric("rowan_snapshot_policy_passes_total") > before, nil })
	p.rest()
}

// peak is the most memory that the process had.
func (p *process) peak() float64 {
	p.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.cmd.Process.Pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				p.t.Fatal(err)
			}
			return n * 1024
		}
	}
	p.t.Fatal("no VmHWM")
	return 0
}

// requests of the process to the API server, by method.
func (p *process) requests(methods ...string) float64 {
	p.t.Helper()
	r, err := http.Get(p.url)
	if err != nil {
		p.t.Fatal(err)
	}
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil || !strings.Contains(string(text), "rest_client_requests_total{") {
		p.t.Fatalf("no count of requests: %v", err)
	}
	return sumOf(string(text), "rest_client_requests_total", func(labels string) bool {
		return slices.ContainsFunc(methods, func(m string) bool { return strings.Contains(labels, `method="`+m+`"`) })
	})
}

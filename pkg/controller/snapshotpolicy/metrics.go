package snapshotpolicy

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

var policyLabels = []string{"kind", "namespace", "policy"}

var (
	passes = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rowan_snapshot_policy_passes_total", Help: "Looks at a snapshot policy, its PVCs and its snapshots.",
	}, policyLabels)
	takenTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rowan_snapshot_policy_taken_total", Help: "Snapshots that a policy asked for.",
	}, policyLabels)
	prunedTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rowan_snapshot_policy_pruned_total", Help: "Snapshots that a policy deleted, by the reason.",
	}, append(policyLabels[:3:3], "reason"))
	failedTotal = prometheus.NewCounterVec(prometheus.CounterOpts{
		Name: "rowan_snapshot_policy_failed_total", Help: "Snapshots that the API server refused to make (take) or to delete (prune).",
	}, append(policyLabels[:3:3], "call"))
	lastSuccess = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "rowan_snapshot_policy_last_success_timestamp_seconds", Help: "When the newest ready snapshot of a policy was cut.",
	}, policyLabels)
	nextRun = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "rowan_snapshot_policy_next_run_timestamp_seconds", Help: "When a policy's next snapshots are due; jitter is not in it.",
	}, policyLabels)
	snapshotCount = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "rowan_snapshot_policy_snapshots", Help: "Snapshots of a policy.",
	}, policyLabels)
	failingSources = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "rowan_snapshot_policy_sources_failing", Help: "PVCs or groups whose newest snapshot could not be taken or failed.",
	}, policyLabels)
)

func init() {
	metrics.Registry.MustRegister(passes, takenTotal, prunedTotal, failedTotal, lastSuccess, nextRun, snapshotCount, failingSources)
}

// measure tells the metrics what the status says.
func (ps *pass) measure() {
	labels, s := ps.p.labelValues(), ps.p.status
	snapshotCount.WithLabelValues(labels...).Set(float64(s.Snapshots))
	failingSources.WithLabelValues(labels...).Set(float64(s.Sources.Failing))
	if s.LastSuccessTime != nil {
		lastSuccess.WithLabelValues(labels...).Set(float64(s.LastSuccessTime.Unix()))
	}
	if s.NextRunTime != nil {
		nextRun.WithLabelValues(labels...).Set(float64(s.NextRunTime.Unix()))
	} else {
		nextRun.DeleteLabelValues(labels...)
	}
}

func forgetMetrics(key client.ObjectKey) {
	kind := kindPolicy
	if key.Namespace == "" {
		kind = kindCluster
	}
	match := prometheus.Labels{"kind": kind, "namespace": key.Namespace, "policy": key.Name}
	for _, v := range []*prometheus.MetricVec{passes.MetricVec, takenTotal.MetricVec, prunedTotal.MetricVec, failedTotal.MetricVec, lastSuccess.MetricVec,
		nextRun.MetricVec, snapshotCount.MetricVec, failingSources.MetricVec} {
		v.DeletePartialMatch(match)
	}
}

package poolset

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

var (
	nodes = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "rowan_poolset_nodes", Help: "Nodes that a PoolSet chooses.",
	}, []string{"poolset"})
	readyPools = prometheus.NewGaugeVec(prometheus.GaugeOpts{
		Name: "rowan_poolset_nodes_ready", Help: "Nodes that a PoolSet chooses and that have a ready pool of it.",
	}, []string{"poolset"})
)

func init() { metrics.Registry.MustRegister(nodes, readyPools) }

func observe(set string, chosen, ready int32) {
	nodes.WithLabelValues(set).Set(float64(chosen))
	readyPools.WithLabelValues(set).Set(float64(ready))
}

func forget(set string) {
	nodes.DeleteLabelValues(set)
	readyPools.DeleteLabelValues(set)
}

package lostnode

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

var lostSince = prometheus.NewGaugeVec(prometheus.GaugeOpts{
	Name: "rowan_node_gone_since_timestamp_seconds", Help: "Since when a node with pools is gone and its agent silent.",
}, []string{"node"})

func init() { metrics.Registry.MustRegister(lostSince) }

package selectednode

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

var placed = prometheus.NewCounter(prometheus.CounterOpts{
	Name: "rowan_claims_placed_total", Help: "Claims that were placed on the node of their source.",
})

func init() { metrics.Registry.MustRegister(placed) }

package poolmove

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

var moved = prometheus.NewCounter(prometheus.CounterOpts{
	Name: "rowan_pools_moved_total", Help: "Pools that were moved to the node where their disks showed up.",
})

func init() { metrics.Registry.MustRegister(moved) }

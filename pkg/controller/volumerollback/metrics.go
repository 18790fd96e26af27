package volumerollback

import (
	"github.com/prometheus/client_golang/prometheus"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

var finished = prometheus.NewCounterVec(prometheus.CounterOpts{
	Name: "rowan_rollbacks_total", Help: "VolumeRollbacks that are finished, by their result: complete or failed.",
}, []string{"result"})

func init() { metrics.Registry.MustRegister(finished) }

package main

import (
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"google.golang.org/grpc/codes"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// callSeconds is how long CSI calls took from their arrival to their answer. Its buckets tell a snapshot of 250 ms from a slower one.
var callSeconds = sync.OnceValue(func() *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{
		Name: "rowan_csi_call_seconds", Help: "Time from a CSI call's arrival to its answer, by method and gRPC code.",
		Buckets: []float64{.001, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60},
	}, []string{"method", "code"})
	metrics.Registry.MustRegister(h)
	return h
})

// measure is told of every call that was answered.
func measure(method string, code codes.Code, took time.Duration) {
	callSeconds().WithLabelValues(method, code.String()).Observe(took.Seconds())
}

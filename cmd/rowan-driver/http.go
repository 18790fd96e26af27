package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

// serveHTTP serves health and metrics until stop is called. Alive is a process that answers at all; it is ready while ready is nil.
func (o *sharedOptions) serveHTTP(ready func(context.Context) error) (stop func() error, err error) {
	health := http.NewServeMux()
	health.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write([]byte("ok\n")) })
	health.HandleFunc("/readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := ready(r.Context()); err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		_, _ = w.Write([]byte("ok\n"))
	})
	measured := http.NewServeMux()
	measured.Handle("/metrics", promhttp.HandlerFor(metrics.Registry, promhttp.HandlerOpts{ErrorHandling: promhttp.HTTPErrorOnError}))
	var servers []*http.Server
	stop = func() (err error) {
		for _, s := range servers {
			err = errors.Join(err, s.Close())
		}
		return err
	}
	for _, a := range []struct {
		flag, address string
		handler       http.Handler
	}{{"--health-address", o.healthAddress, health}, {"--metrics-address", o.metricsAddress, measured}} {
		if a.address == "" {
			continue
		}
		l, err := net.Listen("tcp", a.address)
		if err != nil {
			return nil, errors.Join(fmt.Errorf("%s: %w", a.flag, err), stop())
		}
		s := &http.Server{Handler: a.handler, ReadHeaderTimeout: 10 * time.Second}
		servers = append(servers, s)
		go func() { _ = s.Serve(l) }() // it ends with stop, and says nothing else
	}
	return stop, nil
}

package main

import (
	"os"

	"github.com/spf13/pflag"
)

// sharedOptions are those of several modes.
type sharedOptions struct {
	endpoint       string
	engineSocket   string
	node           string
	maxVolumes     int64
	healthAddress  string
	metricsAddress string
	kubeconfig     string
	kubeQPS        float32
	kubeBurst      int
	namespace      string
	frozenDir      string
}

func (o *sharedOptions) flags(f *pflag.FlagSet) {
	hostname, _ := os.Hostname()
	f.StringVar(&o.endpoint, "endpoint", "unix:///run/rowan/csi.sock", "the socket to serve CSI on, as unix:///absolute/path")
	f.StringVar(&o.engineSocket, "engine-socket", "/run/rowan/engine.sock", "the engine's socket (not with --controller)")
	f.StringVar(&o.frozenDir, "frozen-dir", "/run/rowan/frozen", "where it is noted what is frozen, on a tmpfs that outlives this process (not with --controller)")
	f.StringVar(&o.node, "node-name", hostname, "this node's name (not with --controller); with --standalone also its topology value")
	f.Int64Var(&o.maxVolumes, "max-volumes-per-node", 0, "how many volumes may be in use here (not with --controller); 0: no limit")
	f.StringVar(&o.healthAddress, "health-address", ":9809", "where /healthz and /readyz are served over HTTP (not with --standalone); empty: nowhere")
	f.StringVar(&o.metricsAddress, "metrics-address", ":9810", "where /metrics is served over HTTP (not with --standalone); empty: nowhere")
	f.StringVar(&o.kubeconfig, "kubeconfig", "", "how to reach the Kubernetes API (not with --standalone); empty: as a pod does")
	f.Float32Var(&o.kubeQPS, "kube-api-qps", 200, "requests a second to the Kubernetes API, lasting")
	f.IntVar(&o.kubeBurst, "kube-api-burst", 400, "requests to the Kubernetes API at once")
	f.StringVar(&o.namespace, "namespace", "", "where the agents' leases are; empty: the namespace of the pod")
}

package agent

import (
	"context"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// scrapeTimeout bounds what a scrape waits for the engine.
const scrapeTimeout = 5 * time.Second

// poolMetrics are what changes too often for a status.
var poolMetrics = []struct {
	desc *prometheus.Desc
	of   func(engine.PoolInfo) float64
}{
	{poolDesc("size_bytes", "Data that the pool may hold."), func(p engine.PoolInfo) float64 { return float64(p.Size) }},
	{poolDesc("used_bytes", "Data that it holds."), func(p engine.PoolInfo) float64 { return float64(p.Used) }},
	{poolDesc("available_bytes", "What can be written now."), func(p engine.PoolInfo) float64 { return float64(p.Available) }},
	{poolDesc("reserved_bytes", "Set aside for thick volumes and not used yet."), func(p engine.PoolInfo) float64 { return float64(p.Reserved) }},
	{poolDesc("provisioned_bytes", "The sizes of its volumes together."), func(p engine.PoolInfo) float64 { return float64(p.Provisioned) }},
	{poolDesc("metadata_bytes", "What its metadata takes."), func(p engine.PoolInfo) float64 { return float64(p.MetadataBytes) }},
	{poolDesc("volumes", "How many volumes it has."), func(p engine.PoolInfo) float64 { return float64(p.Volumes) }},
	{poolDesc("snapshots", "How many snapshots it has."), func(p engine.PoolInfo) float64 { return float64(p.Snapshots) }},
	{poolDesc("ready", "1 while it takes writes."), func(p engine.PoolInfo) float64 { return oneIf(p.State == stateReady) }},
}

var engineUp = prometheus.NewDesc("rowan_engine_up", "1 while the engine answers.", nil, nil)

func poolDesc(name, help string) *prometheus.Desc {
	return prometheus.NewDesc("rowan_pool_"+name, help, []string{"pool"}, nil)
}

func oneIf(yes bool) float64 {
	if yes {
		return 1
	}
	return 0
}

// Metrics are the figures of this node's pools, asked of the engine at each scrape.
func (a *Agent) Metrics() prometheus.Collector { return collector{a.engine} }

type collector struct{ engine Engine }

// Describe implements prometheus.Collector.
func (c collector) Describe(ch chan<- *prometheus.Desc) {
	ch <- engineUp
	for _, m := range poolMetrics {
		ch <- m.desc
	}
}

// Collect implements prometheus.Collector.
func (c collector) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), scrapeTimeout)
	defer cancel()
	pools, err := c.engine.Pools(ctx)
	ch <- prometheus.MustNewConstMetric(engineUp, prometheus.GaugeValue, oneIf(err == nil))
	for _, p := range pools {
		for _, m := range poolMetrics {
			ch <- prometheus.MustNewConstMetric(m.desc, prometheus.GaugeValue, m.of(p), p.Name)
		}
	}
}

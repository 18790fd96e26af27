package agent

import (
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

func TestMetrics(t *testing.T) {
	w, p := poolWorld(t)
	w.apply(newVolume(p, "v", 10*mi))
	w.settled()
	r := prometheus.NewPedanticRegistry()
	must(t, r.Register(w.agent.Metrics()))
	figures := func() map[string]float64 {
		t.Helper()
		families, err := r.Gather()
		must(t, err)
		got := map[string]float64{}
		for _, f := range families {
			got[f.GetName()] = f.GetMetric()[0].GetGauge().GetValue()
		}
		return got
	}
	got := figures()
	for name, want := range map[string]float64{
		"rowan_engine_up": 1, "rowan_pool_ready": 1, "rowan_pool_volumes": 1, "rowan_pool_provisioned_bytes": 10 * mi, "rowan_pool_size_bytes": 256 * mi,
	} {
		if got[name] != want {
			t.Errorf("%s: %v, want %v", name, got[name], want)
		}
	}
	w.stopEngine()
	if got := figures(); got["rowan_engine_up"] != 0 || len(got) != 1 {
		t.Errorf("without an engine: %v", got)
	}
	w.startEngine()
}

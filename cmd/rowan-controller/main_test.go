package main

import (
	"strings"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

func TestComplete(t *testing.T) {
	good := options{Config: kit.DefaultConfig, qps: 1, burst: 1}
	good.Namespace = "rowan"
	if err := good.complete(); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		change func(*options)
		want   string
	}{
		{func(o *options) { o.Namespace = "" }, "--namespace is empty"},
		{func(o *options) { o.NodeLostAfter = time.Second }, "--node-lost-after 1s"},
		{func(o *options) { o.UnselectedAfter = -1 }, "--unselected-after"},
		{func(o *options) { o.qps = 0 }, "--kube-api-qps"},
	} {
		o := good
		c.change(&o)
		if err := o.complete(); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v does not say %q", err, c.want)
		}
	}
}

// The flags that the chart gives.
func TestFlags(t *testing.T) {
	cmd := command()
	for _, flag := range []string{"leader-elect", "namespace", "health-address", "metrics-address", "node-lost-after", "snapshot-policies", "v"} {
		if cmd.Flags().Lookup(flag) == nil {
			t.Errorf("no flag --%s", flag)
		}
	}
}

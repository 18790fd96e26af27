package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"sigs.k8s.io/controller-runtime/pkg/metrics"
)

func TestModes(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "choose one of"},
		{[]string{"--controller", "--standalone"}, "a process runs one of them"},
		{[]string{"--standalone", "--pool="}, "--pool is empty"},
		{[]string{"--standalone", "--node-name="}, "--node-name is empty"},
		{[]string{"--standalone", "--overcommit=0"}, "--overcommit 0"},
		{[]string{"--standalone", "--max-volumes-per-node=-1"}, "--max-volumes-per-node -1"},
		{[]string{"--node", "--node-name="}, "--node-name is empty"},
		{[]string{"--node", "--max-volumes-per-node=-1"}, "--max-volumes-per-node -1"},
		{[]string{"--node", "--kubelet-dir=here"}, "--kubelet-dir"},
		{[]string{"--node", "--poll-interval=1ms"}, "--poll-interval"},
		{[]string{"--node", "--kubeconfig=/nonexistent"}, "reach the Kubernetes API"},
		{[]string{"--controller", "--default-pool-set="}, "--default-pool-set is empty"},
		{[]string{"--controller", "--kubeconfig=/nonexistent"}, "reach the Kubernetes API"},
	} {
		cmd := command()
		cmd.SetArgs(c.args)
		if err := cmd.ExecuteContext(context.Background()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v: %v, want %q", c.args, err, c.want)
		}
	}
}

func TestMeasure(t *testing.T) {
	measure("CreateSnapshot", codes.OK, 100*time.Millisecond)
	measure("CreateSnapshot", codes.OK, time.Second)
	families, err := metrics.Registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range families {
		if f.GetName() == "rowan_csi_call_seconds" && f.GetMetric()[0].GetHistogram().GetSampleCount() == 2 {
			return
		}
	}
	t.Error("rowan_csi_call_seconds does not tell of two calls")
}

package v1alpha1

import (
	"slices"
	"strings"
	"testing"
)

func TestAgentLease(t *testing.T) {
	if got := AgentLease("node-1"); got != "rowan-agent-node-1" {
		t.Error(got)
	}
	a, b := AgentLease(strings.Repeat("n", 252)+"a"), AgentLease(strings.Repeat("n", 252)+"b")
	if len(a) != 253 || a == b || !strings.HasPrefix(a, "rowan-agent-nnn") {
		t.Error(a, b)
	}
}

func TestPoolUsage(t *testing.T) {
	list := []PoolUsage{{"default-a", 10, 40}, {"fast-a", 0, 1 << 40}}
	if got := ParsePoolUsage(PoolUsageText(list)); !slices.Equal(got, list) || got[0].Percent() != 25 {
		t.Error(got)
	}
	for _, text := range []string{"", "a", "a=", "a=1", "a=1/", "a=1/x", "a=-1/2", "a=1/0", "=1/2", "a=1/2/3"} {
		if got := ParsePoolUsage(text); len(got) != 0 {
			t.Errorf("%q is %v", text, got)
		}
	}
	if got := ParsePoolUsage("nonsense,a=1/2"); len(got) != 1 || got[0].Pool != "a" {
		t.Error(got)
	}
}

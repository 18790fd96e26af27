package v1alpha1

import (
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

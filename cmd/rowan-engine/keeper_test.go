package main

import (
	"os"
	"os/exec"
	"strings"
	"testing"
)

// TestEngineWaitsForKeeper: where keeper and engine are started apart, in any order, the engine does not end because it is first. It did after ten
// seconds, and a node's volumes waited until it was started again.
func TestEngineWaitsForKeeper(t *testing.T) {
	n := newNode(t)
	t.Setenv(asImpatient, "20ms")
	n.run("--start-keeper=false")
	n.within("the engine waits longer than a keeper takes", func() bool { return strings.Count(n.logged(), "still waiting for the keeper") > 1 })
	keeper := exec.Command("/proc/self/exe", "keeper", "--keeper-socket", n.keeper())
	keeper.Env = append(os.Environ(), asEngine+"=1")
	keeper.Stdout, keeper.Stderr = n.log, n.log
	if err := keeper.Start(); err != nil {
		t.Fatal(err)
	}
	go keeper.Wait()
	n.within("the engine answers", n.answers)
}

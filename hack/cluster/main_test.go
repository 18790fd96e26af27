package main

import (
	"errors"
	"os/exec"
	"testing"
)

// TestErrorsAreTold holds apart the end of a command that speaks for itself and that of one that Rowan's tool ran on the way: a failed `go build` was
// once passed on in silence.
func TestErrorsAreTold(t *testing.T) {
	var passed passedOn
	if err := attach(exec.Command("sh", "-c", "exit 3")); !errors.As(err, &passed) || passed.code != 3 {
		t.Errorf("a command's own status: %v", err)
	}
	if err := attach(exec.Command("/absent")); err == nil || errors.As(err, &passed) {
		t.Errorf("a command that is not there: %v; that has to be told", err)
	}
	cmd := command()
	cmd.SetArgs([]string{"build", "--kubernetes", "v1.31.0"})
	if err := cmd.Execute(); err == nil || errors.As(err, &passed) {
		t.Errorf("an unsupported version: %v; that has to be told", err)
	}
}

package kube

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDownAfterCrash kills Up at several moments; Down finds what there is.
func TestDownAfterCrash(t *testing.T) {
	needCluster(t)
	tool := filepath.Join(t.TempDir(), "cluster")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", tool, "..").CombinedOutput(); err != nil {
		t.Fatalf("build the command: %v\n%s", err, out)
	}
	moments := map[string]func(dir string) error{
		"folder is claimed":      func(dir string) error { _, err := os.Stat(stateFile(dir)); return err },
		"control plane is there": func(dir string) error { return hasInit(dir, 0) },
		"last node is there":     func(dir string) error { return hasInit(dir, 2) },
		"kubelet runs":           func(dir string) error { _, err := os.Stat(filepath.Join(dir, "log", "kubelet-node-1.log")); return err },
	}
	for name, moment := range moments {
		t.Run(name, func(t *testing.T) {
			before := lookAround(t)
			dir := filepath.Join(t.TempDir(), "cluster")
			cmd := exec.CommandContext(t.Context(), tool, "up", "--nodes", "2", "--dir", dir)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			err := until(ctx, name, func() error { return moment(dir) })
			if kerr := cmd.Process.Signal(unix.SIGKILL); err != nil || kerr != nil {
				t.Fatal(err, kerr)
			}
			_ = cmd.Wait()
			takeDown(t, dir, before)
		})
	}
}

func hasInit(dir string, number int) error {
	found, err := inits(dir)
	if err == nil && found[number] == 0 {
		err = fmt.Errorf("%s is not there", nodeName(number))
	}
	return err
}

package stack

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"strings"
)

// Build makes rowan-engine and rowan-driver of this module in a folder.
func Build(ctx context.Context, dir string) error {
	mod, err := exec.CommandContext(ctx, "go", "env", "GOMOD").Output()
	if err != nil {
		return fmt.Errorf("find the module: %w", err)
	}
	root := strings.TrimSuffix(strings.TrimSpace(string(mod)), "/go.mod")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the programs' folder: %w", err)
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-o", dir+"/", "./cmd/rowan-engine", "./cmd/rowan-driver")
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build the programs: %w\n%s", err, out)
	}
	return nil
}

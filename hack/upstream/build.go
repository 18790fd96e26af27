package main

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/rowan-csi/rowan/hack/cluster/build"
)

// suite is the nested module with the tests, and where its programs are.
type suite struct {
	dir   string // of test/e2e/upstream
	cache build.Cache
	log   io.Writer
}

// key names the sources that the binary is made of.
func (s suite) key() (string, error) {
	files, err := filepath.Glob(filepath.Join(s.dir, "suite", "*.go"))
	if err != nil {
		return "", err
	}
	slices.Sort(files)
	sum := sha256.New()
	fmt.Fprintln(sum, runtime.Version(), runtime.GOARCH)
	for _, file := range append(files, filepath.Join(s.dir, "go.mod"), filepath.Join(s.dir, "go.sum")) {
		text, err := os.ReadFile(file)
		if err != nil {
			return "", fmt.Errorf("read the suite's sources: %w", err)
		}
		fmt.Fprintln(sum, filepath.Base(file), len(text))
		sum.Write(text)
	}
	return hex.EncodeToString(sum.Sum(nil))[:12], nil
}

// programs are the paths of the test binary and of ginkgo, beside the cluster's programs. Ginkgo takes the end .test for a sign of the former.
func (s suite) programs() (tests, ginkgo string, err error) {
	key, err := s.key()
	if err != nil {
		return "", "", err
	}
	return s.cache.Program("upstream-" + key + ".test"), s.cache.Program("ginkgo-" + key), nil
}

// build makes them if they are not there. Each appears in place when it is whole.
func (s suite) build(ctx context.Context) (tests, ginkgo string, err error) {
	if tests, ginkgo, err = s.programs(); err != nil {
		return "", "", err
	}
	if err := os.MkdirAll(s.cache.Bin(), 0o755); err != nil {
		return "", "", fmt.Errorf("make the cache: %w", err)
	}
	for _, program := range []struct {
		path string
		args []string
	}{
		{ginkgo, []string{"build", "-o"}},
		{tests, []string{"test", "-c", "-vet=off", "-o"}},
	} {
		if _, err := os.Stat(program.path); err == nil {
			continue
		}
		start := time.Now()
		part := fmt.Sprintf("%s.part-%d", program.path, os.Getpid())
		source := "./suite"
		if program.path == ginkgo {
			source = "github.com/onsi/ginkgo/v2/ginkgo"
		}
		if err := s.goCommand(ctx, append(program.args, part, source)...); err != nil {
			return "", "", errors.Join(err, os.RemoveAll(part))
		}
		if err := os.Rename(part, program.path); err != nil {
			return "", "", err
		}
		fmt.Fprintf(s.log, "built %s in %.0f s\n", filepath.Base(program.path), time.Since(start).Seconds())
	}
	return tests, ginkgo, nil
}

// checkManifest runs the nested module's own tests: the manifest is decoded strictly there.
func (s suite) checkManifest(ctx context.Context) error {
	if err := s.goCommand(ctx, "test", "-vet=off", "."); err != nil {
		return fmt.Errorf("check the manifest: %w", err)
	}
	return nil
}

// goCommand runs go in the nested module, with the flags that the cluster's Kubernetes was built with, so that packages of both are compiled once.
func (s suite) goCommand(ctx context.Context, args ...string) error {
	cmd := exec.CommandContext(ctx, "go", slices.Insert(args, 1, "-trimpath", "-ldflags=-s -w")...)
	cmd.Dir = s.dir
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go %s: %w\n%s", strings.Join(args, " "), err, out)
	}
	return nil
}

// list asks the test binary for its specs.
func (s suite) list(ctx context.Context, tests string) ([]spec, error) {
	dir, err := os.MkdirTemp("", "rowan-upstream-")
	if err != nil {
		return nil, fmt.Errorf("list specs: %w", err)
	}
	defer os.RemoveAll(dir)
	file := filepath.Join(dir, "specs")
	if out, err := exec.CommandContext(ctx, tests, "-upstream.dir", s.dir, "-upstream.list", file).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("list specs: %w\n%s", err, out)
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("list specs: %w", err)
	}
	var list []spec
	for line := range bytes.Lines(text) {
		var one spec
		if err := json.Unmarshal(line, &one); err != nil {
			return nil, fmt.Errorf("list specs: %w", err)
		}
		list = append(list, one)
	}
	return list, nil
}

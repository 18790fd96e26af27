// Package sanity runs csi-test's suite against rowan-driver, rowan-engine, its pool and the kernel: real devices, real file systems, real mounts. Without
// a cluster it does so with the driver on an engine of its own, and skips without root; with one (-kubeconfig, -node-exec) over the sockets of the
// driver there. It has no code but these tests. (pkg/driver runs the same suite in memory.)
package sanity

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
	"github.com/onsi/gomega"

	"github.com/rowan-csi/rowan/hack/stack"
)

const gi = 1 << 30

// missing are the suite's reasons to skip that stand for something csi.rowan.storage does not advertise. What is advertised later runs by itself.
var missing = []string{
	"ControllerPublishVolume not supported", // attachRequired is false: there is nothing to do in the controller
	"ControllerUnpublishVolume not supported",
	"Controller Publish, UnpublishVolume not supported",
	"ControllerGetVolumeHealth not supported", // alpha in specification 1.13
	"ControllerListVolumeHealth not supported",
	"NodeGetVolumeHealth not supported",
	"NodeGetStorageHealth not supported",
	"SNAPSHOT_ACCESSIBILITY_CONSTRAINTS not supported", // alpha in specification 1.13
}

func TestSanity(t *testing.T) {
	if options.Kubeconfig != "" {
		t.Skip("a cluster's driver is tested: TestSanityInCluster")
	}
	if err := stack.Check(); err != nil {
		t.Skip(err)
	}
	// The test's own time runs out before go test's, which would leave everything behind.
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Minute)
	defer cancel()
	bin := t.TempDir()
	if err := stack.Build(ctx, bin); err != nil {
		t.Fatal(err)
	}
	s, err := stack.Start(ctx, stack.Config{Bin: bin, Name: "sanity", Size: 64 * gi, Driver: true, Temp: os.Getenv("TMPDIR"), Logs: t.ArtifactDir()})
	if err != nil {
		t.Fatal(err)
	}
	defer func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}()

	for _, kind := range []string{"mount", "block"} {
		cfg := sanity.NewTestConfig()
		cfg.Address = s.Endpoint
		cfg.TargetPath, cfg.StagingPath = filepath.Join(s.Dir, kind+"-target"), filepath.Join(s.Dir, kind+"-staging")
		cfg.TestVolumeSize, cfg.TestVolumeExpandSize = gi, 2*gi
		cfg.TestVolumeAccessType = kind
		ginkgo.Describe(kind, func() { sanity.GinkgoTest(&cfg) }) // ginkgo runs one tree per process: both are its branches
	}
	runSuite(t, 9*time.Minute)

	info, err := s.Engine.Pool(ctx, s.Pool)
	if err != nil {
		t.Fatal(err)
	}
	if info.Volumes != 0 || info.Snapshots != 0 {
		t.Errorf("the suite left %d volumes and %d snapshots", info.Volumes, info.Snapshots)
	}
	if err := whole(ctx, s); err != nil {
		t.Error(err)
	}
}

// runSuite runs what was described; ginkgo does so once in a process.
func runSuite(t *testing.T, timeout time.Duration) {
	gomega.RegisterFailHandler(ginkgo.Fail)
	ginkgo.ReportAfterSuite("figures", func(r ginkgo.Report) { report(t, r) })
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.Succinct, reporter.NoColor = true, true
	suite.Timeout = timeout
	ginkgo.RunSpecs(t, "CSI sanity", suite, reporter)
}

// whole waits for the background passes and has the pool checked.
func whole(ctx context.Context, s *stack.Stack) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	err := stack.Until(ctx, "the pool is empty", func() error {
		p, err := s.Engine.Pool(ctx, s.Pool)
		if err == nil && (p.Used != 0 || p.Jobs != 0) {
			err = errors.New("something is in use")
		}
		return err
	})
	if err != nil {
		return err
	}
	r, err := s.Engine.Check(ctx, s.Pool)
	if err == nil && len(r.Problems) > 0 {
		err = errors.New(strings.Join(r.Problems, "; "))
	}
	return err
}

// report prints the figures and why tests were skipped, and fails where no missing capability is the reason.
func report(t *testing.T, r ginkgo.Report) {
	var passed, failed, skipped int
	reasons := map[string]int{}
	for _, spec := range r.SpecReports {
		if spec.LeafNodeType != types.NodeTypeIt {
			continue
		}
		switch {
		case spec.State == types.SpecStatePending:
			skipped++
			reasons["pending in csi-test itself: "+spec.LeafNodeText]++
		case spec.State == types.SpecStateSkipped:
			skipped++
			reasons[spec.Failure.Message]++
			if !slices.Contains(missing, spec.Failure.Message) {
				t.Errorf("%s: skipped for a reason that is not expected: %q", spec.FullText(), spec.Failure.Message)
			}
		case spec.State.Is(types.SpecStateFailureStates):
			failed++
			t.Errorf("%s: %s", spec.FullText(), spec.Failure.Message)
		default:
			passed++
		}
	}
	fmt.Println()
	for _, reason := range slices.Sorted(maps.Keys(reasons)) {
		fmt.Printf("skipped %d: %s\n", reasons[reason], reason)
	}
	fmt.Printf("sanity_passed %d (bar over 100)\n", passed)
	fmt.Printf("sanity_skipped %d (bar: what is not advertised)\n", skipped)
	fmt.Printf("sanity_failed %d (bar 0)\n", failed)
	if passed <= 100 {
		t.Errorf("only %d tests ran", passed)
	}
}

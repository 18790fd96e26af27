package driver_test

import (
	"path/filepath"
	"testing"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"

	"github.com/rowan-csi/rowan/pkg/driver/mount/mounttest"
	"github.com/rowan-csi/rowan/pkg/volume/memory"
)

// TestSanity is csi-test's suite, with both kinds of volumes, over a service and a machine in memory. It needs no root.
func TestSanity(t *testing.T) {
	gomega.RegisterFailHandler(ginkgo.Fail)
	for _, kind := range []string{"mount", "block"} {
		machine := &mounttest.Fake{}
		dir := t.TempDir()
		cfg := sanity.NewTestConfig()
		cfg.Address = serve(t, memory.New(memory.Config{Node: node, Size: 1 << 40}), machine)
		cfg.TargetPath, cfg.StagingPath = filepath.Join(dir, "target"), filepath.Join(dir, "staging")
		cfg.TestVolumeAccessType = kind
		cfg.TestVolumeMutableParameters = map[string]string{"mode": "cow"}
		ginkgo.Describe(kind, func() { sanity.GinkgoTest(&cfg) }) // ginkgo runs one tree per process: both are its branches
		t.Cleanup(func() {
			if n := machine.Mounts(); n != 0 {
				t.Errorf("%s: %d mounts are left", kind, n)
			}
		})
	}
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.Succinct = true
	ginkgo.RunSpecs(t, "CSI sanity", suite, reporter)
}

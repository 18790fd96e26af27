package cluster_test

import (
	"context"
	"path/filepath"
	"testing"
	"time"

	"github.com/kubernetes-csi/csi-test/v5/pkg/sanity"
	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/gomega"
	"k8s.io/klog/v2/ktesting"

	"github.com/rowan-csi/rowan/pkg/driver"
	"github.com/rowan-csi/rowan/pkg/driver/mount/mounttest"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/volumetest"
)

// TestSanity is csi-test's suite, with both kinds of volumes, over custom resources that an agent of memory carries out. It needs no root.
func TestSanity(t *testing.T) {
	gomega.RegisterFailHandler(ginkgo.Fail)
	for _, kind := range []string{"mount", "block"} {
		f := newFixture(t, nil)
		machine := &mounttest.Fake{}
		dir := t.TempDir()
		cfg := sanity.NewTestConfig()
		cfg.Address = serve(t, f, machine)
		cfg.TargetPath, cfg.StagingPath = filepath.Join(dir, "target"), filepath.Join(dir, "staging")
		cfg.TestVolumeAccessType = kind
		cfg.TestVolumeMutableParameters = map[string]string{"mode": "cow"}
		cfg.TestVolumeParameters = map[string]string{string(driver.ParamPoolSet): volumetest.Pool}
		ginkgo.Describe(kind, func() { sanity.GinkgoTest(&cfg) }) // ginkgo runs one tree per process: both are its branches
		t.Cleanup(func() {
			if n := machine.Mounts(); n != 0 {
				t.Errorf("%s: %d mounts are left", kind, n)
			}
			if left := f.api.names(t); len(left) != 0 {
				t.Errorf("%s: left are %v", kind, left)
			}
		})
	}
	suite, reporter := ginkgo.GinkgoConfiguration()
	reporter.Succinct = true
	ginkgo.RunSpecs(t, "CSI sanity", suite, reporter)
}

// serve runs the plugin of the cluster and of its node on one socket until the test ends, and answers its endpoint.
func serve(t *testing.T, f *fixture, machine driver.Mounter) string {
	t.Helper()
	endpoint := "unix://" + filepath.Join(t.TempDir(), "csi.sock")
	l, err := driver.Listen(endpoint)
	if err != nil {
		t.Fatal(err)
	}
	controller := volume.OpenController(f.Service)
	server := driver.NewServer(ktesting.NewLogger(t, ktesting.NewConfig()), driver.Services{
		Identity:   driver.NewIdentity("1.2.3", true, f.Health),
		Controller: driver.NewController(controller, driver.ParamPoolSet),
		Group:      driver.NewGroupController(controller),
		Node:       driver.NewNode(volume.Open(f.agent), machine, driver.NodeOptions{}),
	})
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- driver.Serve(ctx, l, server, 10*time.Second) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return endpoint
}

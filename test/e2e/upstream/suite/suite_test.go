package suite

import (
	"flag"
	"fmt"
	"os"
	"testing"

	"github.com/onsi/ginkgo/v2"

	"k8s.io/kubernetes/test/e2e"
	"k8s.io/kubernetes/test/e2e/framework"
	"k8s.io/kubernetes/test/e2e/framework/config"
	"k8s.io/kubernetes/test/e2e/framework/testfiles"
	"k8s.io/kubernetes/test/e2e/storage/external"
	e2etestingmanifests "k8s.io/kubernetes/test/e2e/testing-manifests"

	// What Kubernetes' own binary registers beside its tests: the names of features, and what is collected when a spec fails.
	_ "k8s.io/kubernetes/test/e2e/feature"
	_ "k8s.io/kubernetes/test/e2e/framework/debug/init"
	_ "k8s.io/kubernetes/test/e2e/framework/metrics/init"
	_ "k8s.io/kubernetes/test/e2e/framework/node/init"
	_ "k8s.io/kubernetes/test/utils/format"
)

var options struct {
	dir, list, run, results, failures string
}

func TestMain(m *testing.M) {
	flag.StringVar(&options.dir, "upstream.dir", "", "folder of manifest.yaml")
	flag.StringVar(&options.list, "upstream.list", "", "write the specs to this file, run none")
	flag.StringVar(&options.run, "upstream.run", "", "file of the specs to run; default: all")
	flag.StringVar(&options.results, "upstream.results", "", "file to append outcomes to")
	flag.StringVar(&options.failures, "upstream.failures", "", "folder for the output of failed specs")
	config.CopyFlags(config.Flags, flag.CommandLine)
	framework.RegisterCommonFlags(flag.CommandLine)
	framework.RegisterClusterFlags(flag.CommandLine)
	flag.Parse()
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "upstream suite:", err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func prepare() error {
	testfiles.AddFileSource(e2etestingmanifests.GetE2ETestingManifestsFS())
	if options.dir == "" {
		return fmt.Errorf("no driver: name the folder of manifest.yaml with -upstream.dir")
	}
	// The suite reads some of the manifest's files relative to the working folder, others from file sources: both lead to the same folder.
	if err := os.Chdir(options.dir); err != nil {
		return fmt.Errorf("go to the manifest's folder: %w", err)
	}
	testfiles.AddFileSource(testfiles.RootFileSource{Root: "."})
	if err := external.AddDriverDefinition("manifest.yaml"); err != nil {
		return fmt.Errorf("read the driver's manifest: %w", err)
	}
	if options.list != "" {
		return writeList(options.list)
	}
	if err := choose(options.run); err != nil {
		return err
	}
	framework.AfterReadingAllFlags(&framework.TestContext)
	// Not before: Kubernetes previews all specs there, and the suite that ginkgo goes on with afterwards has lost nodes outside of containers.
	ginkgo.ReportAfterEach(func(report ginkgo.SpecReport) {
		if err := record(report); err != nil {
			// Without its line the spec counts as not run, which is what the caller then reports.
			fmt.Fprintln(os.Stderr, "upstream suite:", err)
		}
	})
	return nil
}

func TestUpstream(t *testing.T) {
	if options.list != "" {
		t.Skip("specs are listed, not run")
	}
	e2e.RunE2ETests(t)
}

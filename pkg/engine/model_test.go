package engine_test

import (
	"flag"
	"strconv"
	"testing"

	"pgregory.net/rapid"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/enginetest"
)

// checks makes rapid run so many, unless -rapid.checks says otherwise.
func checks(t *testing.T, n int) {
	set := false
	flag.Visit(func(f *flag.Flag) { set = set || f.Name == "rapid.checks" })
	if set {
		return
	}
	for name, value := range map[string]int{"rapid.checks": n, "rapid.steps": 60} {
		before := flag.Lookup(name).Value.String()
		if err := flag.Lookup(name).Value.Set(strconv.Itoa(value)); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = flag.Lookup(name).Value.Set(before) })
	}
}

// TestModel compares the engine with the reference model over random sequences of all operations.
func TestModel(t *testing.T) {
	checks(t, 15)
	rapid.Check(t, func(r *rapid.T) { enginetest.Run(r, engine.NewModelBackend(t, "")) })
}

// TestModelOnDisk is the same on the file system of the test's folder.
func TestModelOnDisk(t *testing.T) {
	engine.NeedFileSystem(t, t.TempDir())
	checks(t, 2)
	rapid.Check(t, func(r *rapid.T) { enginetest.Run(r, engine.NewModelBackend(t, t.TempDir())) })
}

// TestModelConcurrent has many at work at once.
func TestModelConcurrent(t *testing.T) {
	checks(t, 10)
	rapid.Check(t, func(r *rapid.T) { enginetest.RunConcurrent(r, engine.NewModelBackend(t, "")) })
}

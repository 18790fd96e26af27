package build

import (
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// calls are how the packages below run programs.
var calls = regexp.MustCompile(`\brun\((?:ctx|device|mnt\.device), "([^"]+)"( ?\+ ?fsType)?`)

// The image that users get and the one of hack/cluster have the same tools, and these are what the code runs.
func TestTools(t *testing.T) {
	root := filepath.Join("..", "..", "..")
	docker, err := os.ReadFile(filepath.Join(root, "Dockerfile"))
	if err != nil {
		t.Fatal(err)
	}
	install := regexp.MustCompile(`apt-get install [^&]*--no-install-recommends ([^&]+?) &&`).FindStringSubmatch(string(docker))
	if install == nil {
		t.Fatal("the Dockerfile installs nothing")
	}
	if got, want := slices.Sorted(slices.Values(strings.Fields(install[1]))), slices.Sorted(maps.Keys(rowanTools)); !slices.Equal(got, want) {
		t.Errorf("the Dockerfile installs %v, rowanTools are of %v", got, want)
	}
	have := slices.Concat(slices.Collect(maps.Values(rowanTools))...)
	run := map[string]bool{"mount": true, "umount": true} // by k8s.io/mount-utils
	for _, dir := range []string{"pkg/driver/mount", "pkg/engine/member"} {
		files, err := filepath.Glob(filepath.Join(root, dir, "*.go"))
		if err != nil || len(files) == 0 {
			t.Fatalf("%s: %d files, %v", dir, len(files), err)
		}
		for _, name := range files {
			text, err := os.ReadFile(name)
			if err != nil {
				t.Fatal(err)
			}
			for _, call := range calls.FindAllStringSubmatch(string(text), -1) {
				if strings.HasSuffix(name, "_test.go") {
					continue
				}
				if call[2] == "" {
					run[call[1]] = true
					continue
				}
				for _, fsType := range []string{"ext4", "xfs"} {
					run[call[1]+fsType] = true
				}
			}
		}
	}
	for program := range run {
		if !slices.Contains(have, program) {
			t.Errorf("the code runs %s, which no image has", program)
		}
	}
	for _, program := range have {
		if !run[program] {
			t.Errorf("the images have %s, which nothing runs", program)
		}
	}
}

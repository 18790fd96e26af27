package build

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// TestImagesHaveTheirPrograms holds the two lists together: an image of a program that no unit makes would be found out after a long build.
func TestImagesHaveTheirPrograms(t *testing.T) {
	var made []string
	for _, u := range (Cache{version: Kubernetes}).units() {
		for _, p := range u.programs() {
			if slices.Contains(made, p.name) {
				t.Errorf("%s is made twice", p.name)
			}
			made = append(made, p.name)
		}
	}
	for _, i := range images {
		if i.program != "" && !slices.Contains(made, i.program) {
			t.Errorf("image %s is of %s, which nothing makes", i.name, i.program)
		}
	}
	for _, want := range []string{"kubectl", "etcd", "containerd", "containerd-shim-runc-v2", "ctr", "helm", "coredns", "hyperkube", "nodeinit"} {
		if !slices.Contains(made, want) {
			t.Errorf("%s is not made", want)
		}
	}
}

// complete makes a cache that has everything, as empty files.
func complete(t *testing.T) Cache {
	t.Helper()
	c, err := Locate(t.TempDir(), Kubernetes)
	if err != nil {
		t.Fatal(err)
	}
	var files []string
	for _, u := range c.units() {
		for _, p := range u.programs() {
			files = append(files, c.Program(p.name))
		}
		for _, l := range u.links {
			files = append(files, c.Program(l))
		}
	}
	for _, f := range append(files, c.Images()...) {
		if err := os.MkdirAll(filepath.Dir(f), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f, nil, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.MkdirAll(c.Manifests(), 0o755); err != nil {
		t.Fatal(err)
	}
	return c
}

func TestBuildDoesNothingTwice(t *testing.T) {
	c := complete(t)
	if missing := c.Missing(); len(missing) > 0 {
		t.Fatalf("missing: %v", missing)
	}
	var log bytes.Buffer
	if err := c.Build(t.Context(), &log); err != nil || log.Len() > 0 {
		t.Errorf("%v; it says %q", err, log.String())
	}
}

// TestBuildGoesOn has a build find all but one program, as after an interruption.
func TestBuildGoesOn(t *testing.T) {
	c := complete(t)
	if err := os.Remove(c.Program("nodeinit")); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	if err := c.Build(t.Context(), &log); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(c.Program("nodeinit")); err != nil || info.Size() == 0 {
		t.Errorf("nodeinit was not built: %v", err)
	}
	if bytes.Count(log.Bytes(), []byte("built ")) != 1 {
		t.Errorf("more than one program was built: %s", log.String())
	}
	left, _ := filepath.Glob(filepath.Join(c.Dir, ".build-*"))
	if len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestLocate(t *testing.T) {
	dirs := map[string]bool{}
	for _, version := range []string{Kubernetes, "v1.32.13", "v1.32.1"} {
		c, err := Locate("/cache", version)
		if err != nil || dirs[c.Dir] {
			t.Errorf("%s: %s, %v", version, c.Dir, err)
		}
		dirs[c.Dir] = true
	}
	for _, version := range []string{"", "1.36.3", "v1.31.9", "v1.36", "v1.36.3-rc.0", "v2.0.0"} {
		if c, err := Locate("/cache", version); err == nil {
			t.Errorf("%s is taken: %s", version, c.Dir)
		}
	}
}

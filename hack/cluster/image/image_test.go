package image

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// unpack reads all members of a tar archive.
func unpack(t *testing.T, r io.Reader) (headers []*tar.Header, contents map[string][]byte) {
	t.Helper()
	contents = map[string][]byte{}
	for in := tar.NewReader(r); ; {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			return headers, contents
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(in)
		if err != nil {
			t.Fatal(err)
		}
		headers, contents[h.Name] = append(headers, h), text
	}
}

func TestWrite(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "program")
	if err := os.WriteFile(program, []byte("a program"), 0o755); err != nil {
		t.Fatal(err)
	}
	made := Image{Name: "example.org/some/thing:v1", Entrypoint: []string{"/usr/bin/program"}, Files: []File{
		{Path: "/usr/bin/program", Source: program},
		{Path: "/bin", Link: "usr/bin"},
		{Path: "/etc/file", Data: []byte("text")},
		{Path: "/tmp", Dir: true, Mode: 0o1777},
	}}
	archive := filepath.Join(dir, "deep", "image.tar")
	if err := made.Write(archive); err != nil {
		t.Fatal(err)
	}
	first, err := os.ReadFile(archive)
	if err != nil {
		t.Fatal(err)
	}
	if name, err := Name(archive); err != nil || name != made.Name {
		t.Errorf("its name is %q, %v", name, err)
	}
	if _, err := Name(program); err == nil {
		t.Error("a file that is no archive has a name")
	}
	_, parts := unpack(t, bytes.NewReader(first))
	var list []manifest
	if err := json.Unmarshal(parts["manifest.json"], &list); err != nil {
		t.Fatal(err)
	}
	if len(list) != 1 || !slices.Equal(list[0].RepoTags, []string{made.Name}) {
		t.Fatalf("manifest %+v", list)
	}
	var c config
	if err := json.Unmarshal(parts[list[0].Config], &c); err != nil {
		t.Fatal(err)
	}
	if layer := strings.TrimSuffix(list[0].Layers[0], ".tar"); !slices.Equal(c.RootFS.DiffIDs, []string{"sha256:" + layer}) {
		t.Errorf("diff ids %v of layer %s", c.RootFS.DiffIDs, layer)
	}
	headers, _ := unpack(t, bytes.NewReader(parts[list[0].Layers[0]]))
	var got []string
	for _, h := range headers {
		got = append(got, h.FileInfo().Mode().String()+" "+h.Name+" "+h.Linkname)
	}
	want := []string{"Lrwxrwxrwx bin usr/bin", "drwxr-xr-x etc/ ", "-rw-r--r-- etc/file ", "dtrwxrwxrwx tmp/ ", "drwxr-xr-x usr/ ",
		"drwxr-xr-x usr/bin/ ", "-rwxr-xr-x usr/bin/program "}
	if !slices.Equal(got, want) {
		t.Errorf("the layer holds\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
	if err := made.Write(archive); err != nil {
		t.Fatal(err)
	}
	if second, err := os.ReadFile(archive); err != nil || !bytes.Equal(first, second) {
		t.Errorf("the same image has other bytes the second time (%v)", err)
	}
}

// TestWriteFails leaves neither an archive nor a part of one.
func TestWriteFails(t *testing.T) {
	dir := t.TempDir()
	for name, made := range map[string]Image{
		"no tag":       {Name: "localhost:5000/thing"},
		"absent file":  {Name: "a:b", Files: []File{{Path: "/f", Source: filepath.Join(dir, "absent")}}},
		"folder given": {Name: "a:b", Files: []File{{Path: "/f", Source: "/"}}},
		"twice":        {Name: "a:b", Files: []File{{Path: "/f", Data: []byte("1")}, {Path: "f", Data: []byte("2")}}},
	} {
		out := filepath.Join(dir, "out")
		if err := made.Write(filepath.Join(out, "image.tar")); err == nil {
			t.Errorf("%s: an archive was written", name)
		}
		if left, _ := os.ReadDir(out); len(left) > 0 {
			t.Errorf("%s: left %v", name, left)
		}
	}
}

func TestPrograms(t *testing.T) {
	files, err := Programs(t.Context(), "mount")
	if err != nil {
		t.Fatal(err)
	}
	var paths []string
	for _, f := range files {
		paths = append(paths, f.Path)
		if !strings.HasPrefix(f.Path, "/usr/") {
			t.Errorf("%s is outside of /usr", f.Path)
		}
	}
	if !slices.Contains(paths, "/usr/bin/mount") || !slices.ContainsFunc(paths, func(p string) bool { return strings.Contains(p, "/ld-") }) {
		t.Errorf("mount, its libraries and its loader should be among %v", paths)
	}
	if _, err := Programs(t.Context(), "no-such-program"); err == nil || !strings.Contains(err.Error(), "install the package") {
		t.Errorf("a missing program: %v", err)
	}
}

func TestParseLdd(t *testing.T) {
	text := "\tlinux-vdso.so.1 (0x00007ffd)\n\tlibc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x00007f)\n\t/lib64/ld-linux-x86-64.so.2 (0x00007f)\n"
	got, err := parseLdd("p", text)
	if want := []string{"/lib/x86_64-linux-gnu/libc.so.6", "/lib64/ld-linux-x86-64.so.2"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v; want %v", got, err, want)
	}
	if _, err := parseLdd("p", "\tlibgone.so => not found\n"); err == nil || !strings.Contains(err.Error(), "libgone.so") {
		t.Errorf("a missing library: %v", err)
	}
}

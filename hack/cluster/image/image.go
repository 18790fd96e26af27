// Package image writes container images without a container builder: one layer of given files, as an archive that `ctr image import` and `docker
// load` take.
//
// Contract: the same files make the same bytes, whenever and by whom the archive is written. Folders above a file are made (mode 0755, root's). Write
// never leaves half an archive at its path.
//
// Limits: one layer, one architecture (this program's), all files root's.
package image

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
)

// Image is what an archive holds.
type Image struct {
	Name       string // repository and tag, as pods write it
	Files      []File
	Entrypoint []string
	Cmd        []string
}

// File is a regular file, a symbolic link or a folder of an image. Exactly one of Source, Data, Link and Dir is set.
type File struct {
	Path   string // absolute, in the image
	Source string // a file of this machine
	Data   []byte
	Link   string // what the symbolic link holds
	Dir    bool
	Mode   int64 // permission bits; 0: those of Source, else 0644 (0755 for folders)
}

// searchPath is where a container finds its programs.
const searchPath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

type config struct {
	Architecture string `json:"architecture"`
	OS           string `json:"os"`
	Config       struct {
		Entrypoint []string `json:",omitempty"`
		Cmd        []string `json:",omitempty"`
		Env        []string
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
}

type manifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// Write makes the archive.
func (i Image) Write(archive string) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("write image %s: %w", i.Name, err)
		}
	}()
	if !strings.Contains(path.Base(i.Name), ":") {
		return errors.New("its name has no tag; write NAME:TAG")
	}
	if err := os.MkdirAll(filepath.Dir(archive), 0o755); err != nil {
		return err
	}
	layer, err := os.CreateTemp(filepath.Dir(archive), ".layer-")
	if err != nil {
		return err
	}
	defer os.Remove(layer.Name())
	defer layer.Close()
	sum := sha256.New()
	if err := writeLayer(io.MultiWriter(layer, sum), i.Files); err != nil {
		return err
	}
	out, err := os.CreateTemp(filepath.Dir(archive), ".image-")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name()) // gone already where all went well
	defer out.Close()
	if err := i.writeArchive(out, layer, hex.EncodeToString(sum.Sum(nil))); err != nil {
		return err
	}
	if err := errors.Join(out.Chmod(0o644), out.Close()); err != nil {
		return err
	}
	return os.Rename(out.Name(), archive)
}

func (i Image) writeArchive(w io.Writer, layer *os.File, digest string) error {
	var c config
	c.Architecture, c.OS = runtime.GOARCH, "linux"
	c.Config.Entrypoint, c.Config.Cmd, c.Config.Env = i.Entrypoint, i.Cmd, []string{searchPath}
	c.RootFS.Type, c.RootFS.DiffIDs = "layers", []string{"sha256:" + digest}
	configText, err := json.Marshal(c)
	if err != nil {
		return err
	}
	configSum := sha256.Sum256(configText)
	configName, layerName := hex.EncodeToString(configSum[:])+".json", digest+".tar"
	manifestText, err := json.Marshal([]manifest{{Config: configName, RepoTags: []string{i.Name}, Layers: []string{layerName}}})
	if err != nil {
		return err
	}
	size, err := layer.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	if _, err := layer.Seek(0, io.SeekStart); err != nil {
		return err
	}
	out := tar.NewWriter(w)
	for _, part := range []struct {
		name string
		size int64
		from io.Reader
	}{
		{configName, int64(len(configText)), bytes.NewReader(configText)},
		{layerName, size, layer},
		{"manifest.json", int64(len(manifestText)), bytes.NewReader(manifestText)},
	} {
		if err := out.WriteHeader(&tar.Header{Name: part.name, Size: part.size, Mode: 0o644}); err != nil {
			return err
		}
		if _, err := io.Copy(out, part.from); err != nil {
			return err
		}
	}
	return out.Close()
}

// writeLayer writes the files in the order of their paths, and each one's folders before it.
func writeLayer(w io.Writer, files []File) error {
	files = slices.Clone(files)
	for n := range files {
		files[n].Path = path.Clean("/" + files[n].Path)
	}
	slices.SortFunc(files, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	seen := map[string]bool{"/": true}
	given := map[string]bool{}
	for _, f := range files {
		if given[f.Path] {
			return fmt.Errorf("%s is named twice", f.Path)
		}
		given[f.Path] = true
	}
	out := tar.NewWriter(w)
	for _, f := range files {
		var above []string
		for dir := path.Dir(f.Path); !seen[dir] && !given[dir]; dir = path.Dir(dir) {
			seen[dir] = true
			above = append(above, dir)
		}
		slices.Reverse(above)
		for _, dir := range above {
			if err := writeFile(out, File{Path: dir, Dir: true}); err != nil {
				return err
			}
		}
		if err := writeFile(out, f); err != nil {
			return fmt.Errorf("add %s: %w", f.Path, err)
		}
	}
	return out.Close()
}

func writeFile(out *tar.Writer, f File) error {
	h := &tar.Header{Name: strings.TrimPrefix(f.Path, "/"), Mode: f.Mode, Format: tar.FormatPAX}
	var content io.Reader = bytes.NewReader(f.Data)
	switch {
	case f.Dir:
		h.Typeflag, h.Name, h.Mode = tar.TypeDir, h.Name+"/", orMode(f.Mode, 0o755)
	case f.Link != "":
		h.Typeflag, h.Linkname, h.Mode = tar.TypeSymlink, f.Link, 0o777
	case f.Source != "":
		source, err := os.Open(f.Source)
		if err != nil {
			return err
		}
		defer source.Close()
		info, err := source.Stat()
		if err != nil {
			return err
		}
		if !info.Mode().IsRegular() {
			return fmt.Errorf("%s is no regular file", f.Source)
		}
		h.Typeflag, h.Size, h.Mode, content = tar.TypeReg, info.Size(), orMode(f.Mode, int64(info.Mode().Perm())), source
	default:
		h.Typeflag, h.Size, h.Mode = tar.TypeReg, int64(len(f.Data)), orMode(f.Mode, 0o644)
	}
	if err := out.WriteHeader(h); err != nil {
		return err
	}
	_, err := io.Copy(out, content)
	return err
}

func orMode(mode, otherwise int64) int64 {
	if mode != 0 {
		return mode
	}
	return otherwise
}

// Name is the name and tag of the image in an archive.
func Name(archive string) (name string, err error) {
	f, err := os.Open(archive)
	if err != nil {
		return "", fmt.Errorf("read an image archive: %w", err)
	}
	defer f.Close()
	for in := tar.NewReader(f); ; {
		h, err := in.Next()
		if err != nil {
			return "", fmt.Errorf("%s is no image archive with a name (docker save makes one): %w", archive, err)
		}
		if h.Name != "manifest.json" {
			continue
		}
		var list []manifest
		if err := json.NewDecoder(in).Decode(&list); err != nil {
			return "", fmt.Errorf("read the manifest of %s: %w", archive, err)
		}
		if len(list) != 1 || len(list[0].RepoTags) == 0 {
			return "", fmt.Errorf("%s holds %d images, or one without a name; one with a name is needed", archive, len(list))
		}
		return list[0].RepoTags[0], nil
	}
}

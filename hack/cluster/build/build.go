package build

import (
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
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Cache is the folder that Build fills.
type Cache struct {
	Dir     string
	version string // of Kubernetes; "" for a cache that is complete
}

// release is a version of Kubernetes that Rowan supports, and newer ones.
var release = regexp.MustCompile(`^v1\.(3[2-9]|[4-9][0-9])\.[0-9]+$`)

// Locate is the cache for a version of Kubernetes, and the versions that this source names of the rest, below the user's cache folder
// (os.UserCacheDir).
func Locate(userCache, kubernetes string) (Cache, error) {
	if !release.MatchString(kubernetes) {
		return Cache{}, fmt.Errorf("%q is no version of Kubernetes from v1.32.0 on: write it as %s", kubernetes, Kubernetes)
	}
	c := Cache{version: kubernetes}
	c.Dir = filepath.Join(userCache, "rowan", "cluster", c.key())
	return c, nil
}

func (c Cache) units() []unit { return append([]unit{kubernetes(c.version)}, others...) }

// key names the versions. Sources of our own count by their text.
func (c Cache) key() string {
	sum := sha256.New()
	fmt.Fprintf(sum, "go %s %s\n", runtime.Version(), runtime.GOARCH)
	for _, u := range c.units() {
		fmt.Fprintf(sum, "%+v\n", u)
	}
	fmt.Fprintf(sum, "%s\n%+v\n", snapshotAPI, imageNames())
	return c.version + "-" + hex.EncodeToString(sum.Sum(nil))[:12]
}

// Bin is the folder of the programs.
func (c Cache) Bin() string { return filepath.Join(c.Dir, "bin") }

// Program is a program's path.
func (c Cache) Program(name string) string { return filepath.Join(c.Bin(), name) }

// Manifests is the folder of the snapshot API's custom resource definitions.
func (c Cache) Manifests() string { return filepath.Join(c.Dir, "snapshot-crds") }

// Store is the folder of a containerd that has all images; package kube makes it, because that takes root.
func (c Cache) Store() string { return filepath.Join(c.Dir, "containerd") }

// Missing names what Build would still have to make.
func (c Cache) Missing() (missing []string) {
	for _, u := range c.units() {
		for _, p := range u.programs() {
			if _, err := os.Stat(c.Program(p.name)); err != nil {
				missing = append(missing, p.name)
			}
		}
	}
	for _, path := range append(c.Images(), c.Manifests()) {
		if _, err := os.Stat(path); err != nil {
			missing = append(missing, filepath.Base(path))
		}
	}
	return missing
}

// Build makes what is missing and tells on log what it makes.
func (c Cache) Build(ctx context.Context, log io.Writer) error {
	if len(c.Missing()) == 0 {
		return nil
	}
	if err := os.MkdirAll(c.Bin(), 0o755); err != nil {
		return fmt.Errorf("make the cache: %w", err)
	}
	unlock, err := c.Lock(ctx, log)
	if err != nil {
		return err
	}
	defer unlock()
	for _, u := range c.units() {
		if err := c.buildUnit(ctx, log, u); err != nil {
			return fmt.Errorf("build %s: %w", u.name, err)
		}
	}
	if err := c.copyManifests(ctx); err != nil {
		return fmt.Errorf("copy the snapshot API's definitions: %w", err)
	}
	return c.buildImages(ctx, log)
}

// Lock keeps out others who change the same folder. The kernel gives it back when the process ends, however it ends.
func (c Cache) Lock(ctx context.Context, log io.Writer) (unlock func(), err error) {
	f, err := os.OpenFile(filepath.Join(c.Dir, ".lock"), os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, fmt.Errorf("lock the cache: %w", err)
	}
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for told := false; ; {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if err == nil {
			return func() { _ = f.Close() }, nil
		}
		if !errors.Is(err, unix.EWOULDBLOCK) {
			return nil, errors.Join(fmt.Errorf("lock the cache: %w", err), f.Close())
		}
		if !told {
			fmt.Fprintf(log, "another process works in %s; waiting for it\n", c.Dir)
			told = true
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return nil, errors.Join(context.Cause(ctx), f.Close())
		}
	}
}

func (c Cache) buildUnit(ctx context.Context, log io.Writer, u unit) error {
	todo := slices.DeleteFunc(u.programs(), func(p program) bool {
		_, err := os.Stat(c.Program(p.name))
		return err == nil
	})
	if len(todo) > 0 {
		dir, err := os.MkdirTemp(c.Dir, ".build-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := u.write(ctx, dir); err != nil {
			return err
		}
		for _, p := range todo {
			start := time.Now()
			if err := c.buildProgram(ctx, dir, p, u.ldflags); err != nil {
				return err
			}
			fmt.Fprintf(log, "built %s in %.0f s\n", p.name, time.Since(start).Seconds())
		}
	}
	for _, link := range u.links {
		if err := os.Symlink(u.name, c.Program(link)); err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	return nil
}

func (c Cache) buildProgram(ctx context.Context, dir string, p program, ldflags string) error {
	out := filepath.Join(dir, "out")
	cmd := exec.CommandContext(ctx, "go", "build", "-mod=mod", "-trimpath", "-ldflags", strings.TrimSpace("-s -w "+ldflags), "-o", out, p.path)
	cmd.Dir = dir
	cmd.Env = goEnvironment()
	if text, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("go build %s: %w\n%s", p.path, err, text)
	}
	return os.Rename(out, c.Program(p.name))
}

func goEnvironment() []string {
	return append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false", "GOWORK=off")
}

// write makes the throw-away module.
func (u unit) write(ctx context.Context, dir string) error {
	text := "module cluster.local/" + u.name + "\n\ngo 1.26.0\n"
	if u.module != "" {
		text += "\nrequire " + u.module + " " + u.version + "\n"
		replaces, err := u.replaces(ctx)
		if err != nil {
			return err
		}
		text += replaces
	}
	if err := os.WriteFile(filepath.Join(dir, "go.mod"), []byte(text), 0o644); err != nil {
		return err
	}
	if u.source == nil {
		return nil
	}
	at := filepath.Join(dir, u.name)
	if err := os.Mkdir(at, 0o755); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(at, "main.go"), u.source, 0o644)
}

// replaces repeats the module's replace directives, which count for a main module only. Kubernetes replaces its staging modules by folders of its
// repository, which a module's archive does not hold: they are taken as published. The sample modules are not published and nothing needs them.
func (u unit) replaces(ctx context.Context) (string, error) {
	dir, err := moduleDir(ctx, u.module, u.version)
	if err != nil {
		return "", err
	}
	cmd := exec.CommandContext(ctx, "go", "mod", "edit", "-json", filepath.Join(dir, "go.mod"))
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("read the go.mod of %s: %w", u.module, err)
	}
	type module struct{ Path, Version string }
	var mod struct{ Replace []struct{ Old, New module } }
	if err := json.Unmarshal(out, &mod); err != nil {
		return "", fmt.Errorf("read the go.mod of %s: %w", u.module, err)
	}
	var text strings.Builder
	for _, r := range mod.Replace {
		switch {
		case strings.Contains(r.Old.Path, "/sample-"):
			continue
		case strings.HasPrefix(r.New.Path, "./staging/"):
			r.New = module{r.Old.Path, "v0." + strings.TrimPrefix(u.version, "v1.")}
		case strings.HasPrefix(r.New.Path, "."):
			continue
		}
		fmt.Fprintf(&text, "\nreplace %s %s => %s %s\n", r.Old.Path, r.Old.Version, r.New.Path, r.New.Version)
	}
	return text.String(), nil
}

// moduleDir is the folder of a module's sources, which are fetched if they are not there.
func moduleDir(ctx context.Context, module, version string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "mod", "download", "-json", module+"@"+version)
	cmd.Env = goEnvironment()
	cmd.Dir = os.TempDir() // outside of any module
	out, err := cmd.Output()
	var mod struct{ Dir, Error string }
	if jerr := json.Unmarshal(out, &mod); jerr != nil || mod.Error != "" || err != nil {
		return "", fmt.Errorf("fetch %s@%s: %w %s", module, version, errors.Join(err, jerr), mod.Error)
	}
	return mod.Dir, nil
}

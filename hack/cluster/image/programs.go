package image

import (
	"context"
	"debug/elf"
	"errors"
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Programs makes files of programs of this machine, each under its own path, with the shared libraries they load and their loader. Names without a
// slash are looked up in the search path. A path through a symbolic link (/bin on a merged /usr, mkfs.ext4) becomes the file it leads to, under the
// name that was asked for; Merged has the links that such a layout needs.
func Programs(ctx context.Context, names ...string) ([]File, error) {
	files := map[string]File{}
	for _, name := range names {
		found, err := lookPath(name)
		if err != nil {
			return nil, err
		}
		at, err := settle(found)
		if err != nil {
			return nil, fmt.Errorf("find %s: %w", name, err)
		}
		files[at] = File{Path: at, Source: found, Mode: 0o755}
		libraries, err := libraries(ctx, found)
		if err != nil {
			return nil, err
		}
		for _, lib := range libraries {
			at, err := settle(lib)
			if err != nil {
				return nil, fmt.Errorf("find a library of %s: %w", name, err)
			}
			files[at] = File{Path: at, Source: lib, Mode: 0o755}
		}
	}
	var list []File
	for _, f := range files {
		list = append(list, f)
	}
	slices.SortFunc(list, func(a, b File) int { return strings.Compare(a.Path, b.Path) })
	return list, nil
}

// Merged are the links of a file system whose programs and libraries are all below /usr.
func Merged() []File {
	var links []File
	for _, dir := range []string{"bin", "sbin", "lib", "lib64"} {
		links = append(links, File{Path: "/" + dir, Link: "usr/" + dir})
	}
	return links
}

// lookPath finds a program; system folders are not on every user's path.
func lookPath(name string) (string, error) {
	found, err := exec.LookPath(name)
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if err != nil && !strings.Contains(name, "/") {
			found, err = exec.LookPath(filepath.Join(dir, name))
		}
	}
	if err != nil {
		return "", fmt.Errorf("find %s: %w; install the package that holds it", name, err)
	}
	return filepath.Abs(found)
}

// settle is a file's path on a merged /usr: its folder without symbolic links, its own name as it is.
func settle(file string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(file))
	if err != nil {
		return "", err
	}
	if rest, ok := strings.CutPrefix(dir, "/"); ok && !strings.HasPrefix(dir, "/usr/") {
		if top := strings.SplitN(rest, "/", 2)[0]; slices.Contains([]string{"bin", "sbin", "lib", "lib64"}, top) {
			dir = "/usr" + dir // this machine has no merged /usr, the image has
		}
	}
	return filepath.Join(dir, filepath.Base(file)), nil
}

// libraries are the files that a program's loader would map, and the loader itself; none for a static program. It asks the loader, which alone knows
// all the rules of the search.
func libraries(ctx context.Context, program string) ([]string, error) {
	f, err := elf.Open(program)
	if err != nil {
		return nil, fmt.Errorf("read %s as a program: %w", program, err)
	}
	needed, err := f.ImportedLibraries()
	if err := errors.Join(err, f.Close()); err != nil {
		return nil, fmt.Errorf("read the libraries of %s: %w", program, err)
	}
	if len(needed) == 0 {
		return nil, nil
	}
	out, err := exec.CommandContext(ctx, "ldd", program).CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("ldd %s: %w: %s", program, err, out)
	}
	return parseLdd(program, string(out))
}

// parseLdd reads lines such as "libc.so.6 => /lib/x86_64-linux-gnu/libc.so.6 (0x…)" and "/lib64/ld-linux-x86-64.so.2 (0x…)".
func parseLdd(program, text string) (paths []string, err error) {
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		switch {
		case len(fields) >= 3 && fields[1] == "=>" && strings.HasPrefix(fields[2], "/"):
			paths = append(paths, fields[2])
		case strings.Contains(line, "not found"):
			return nil, fmt.Errorf("%s needs a library that is not there: %s", program, strings.TrimSpace(line))
		case len(fields) >= 1 && strings.HasPrefix(fields[0], "/"):
			paths = append(paths, fields[0])
		}
	}
	return paths, nil
}

package loopdev

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// maxHolders bounds the text of an error.
const maxHolders = 5

// holders says who may have loop device n open, as far as this process can see: devices on top of it, mounts in every mount namespace, and processes
// with the node open. It only reads links and text files, so it cannot hang on the device.
func holders(path string, n int) string {
	var found []string
	add := func(format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		for _, f := range found {
			if f == text {
				return
			}
		}
		found = append(found, text)
	}
	above, _ := filepath.Glob(fmt.Sprintf("/sys/block/loop%d/holders/*", n))
	for _, h := range above {
		add("device %s", filepath.Base(h))
	}
	number, _ := os.ReadFile(fmt.Sprintf("/sys/block/loop%d/dev", n))
	namespaces := map[string]bool{}
	processes, _ := filepath.Glob("/proc/[0-9]*")
	for _, p := range processes {
		if ns, err := os.Readlink(p + "/ns/mnt"); err == nil && !namespaces[ns] {
			namespaces[ns] = true
			for _, at := range mountsOf(p+"/mountinfo", string(bytes.TrimSpace(number))) {
				add("mount at %s", at)
			}
		}
		links, _ := filepath.Glob(p + "/fd/*")
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil && to == path {
				name, _ := os.ReadFile(p + "/comm")
				add("process %s (%s)", filepath.Base(p), bytes.TrimSpace(name))
			}
		}
	}
	switch {
	case len(found) == 0:
		return "who has it open cannot be seen from here"
	case len(found) > maxHolders:
		found = append(found[:maxHolders], fmt.Sprintf("and %d more", len(found)-maxHolders))
	}
	return strings.Join(found, ", ")
}

// mountsOf reads from a mountinfo file where the device number ("7:3") is mounted.
func mountsOf(file, number string) (at []string) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil
	}
	for line := range strings.SplitSeq(string(b), "\n") {
		if f := strings.Fields(line); len(f) > 4 && f[2] == number {
			at = append(at, f[4])
		}
	}
	return at
}

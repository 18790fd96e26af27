package kube

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/hack/cluster/build"
)

var wanted = flag.Bool("cluster", false, "bring clusters up: takes minutes, about 2 GiB of memory and 10 GiB of disk")

// needCluster skips a test where it cannot or shall not run.
func needCluster(t *testing.T) (programs build.Cache) {
	t.Helper()
	if !*wanted {
		t.Skip("brings a cluster up: `make cluster-test` runs it")
	}
	if err := Check(); err != nil {
		t.Skip(err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	programs = build.Locate(cache)
	if missing := programs.Missing(); len(missing) > 0 {
		t.Fatalf("not built: %v; run `go run ./hack/cluster build`", missing)
	}
	return programs
}

// bring brings a cluster up and takes it down with the test, after which the machine has to be as it was.
func bring(t *testing.T, nodes int, snapshots bool) *Cluster {
	t.Helper()
	programs := needCluster(t)
	ctx, cancel := context.WithTimeout(t.Context(), 8*time.Minute)
	defer cancel()
	before := lookAround(t)
	dir := filepath.Join(t.TempDir(), "cluster")
	t.Cleanup(func() { takeDown(t, dir, before) })
	start := time.Now()
	c, err := Up(ctx, Config{Dir: dir, Nodes: nodes, Programs: programs, Snapshots: snapshots, Log: testWriter{t}})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("up with %d nodes after %.1f s", nodes, time.Since(start).Seconds())
	return c
}

type testWriter struct{ t *testing.T }

func (w testWriter) Write(p []byte) (int, error) {
	w.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

// takeDown takes the cluster down and compares the machine with what it was before it came up.
func takeDown(t *testing.T, dir string, before map[string][]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 3*time.Minute)
	defer cancel()
	all := processesOf(t, dir)
	start := time.Now()
	if err := Down(ctx, dir); err != nil {
		t.Fatal(err)
	}
	t.Logf("down after %.1f s", time.Since(start).Seconds())
	for _, p := range all {
		if !p.gone() {
			t.Errorf("process %d is left: %v", p.pid, p.args)
		}
	}
	after := lookAround(t)
	for kind := range before {
		for _, line := range after[kind] {
			if !slices.Contains(before[kind], line) {
				t.Errorf("left: %s: %s", kind, line)
			}
		}
		for _, line := range before[kind] {
			if !slices.Contains(after[kind], line) {
				t.Errorf("gone: %s: %s", kind, line)
			}
		}
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Errorf("left: %s", dir)
	}
	if err := Down(ctx, dir); err != nil {
		t.Errorf("a second Down: %v", err)
	}
}

// processesOf are all processes of all namespace sets.
func processesOf(t *testing.T, dir string) (all []process) {
	t.Helper()
	list, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	roots, err := inits(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, root := range roots {
		all = append(all, below(list, root)...)
	}
	return all
}

// ours are names of what a cluster could leave in folders it shares with the machine; other programs work there, too.
var ours = regexp.MustCompile(`kube|cni|containerd|etcd|rowan|nri|cdi|runc|netns|xtables|coredns`)

// lookAround is what a cluster could leave, kind by kind.
func lookAround(t *testing.T) map[string][]string {
	t.Helper()
	seen := map[string][]string{}
	for _, name := range append(slices.Clone(written), "fs/inotify/max_user_instances", "fs/inotify/max_user_watches") {
		if text, err := os.ReadFile(settingFile(name)); err == nil {
			seen["kernel setting"] = append(seen["kernel setting"], name+" "+strings.TrimSpace(string(text)))
		}
	}
	for _, dir := range []string{"/etc", "/opt", "/run", "/srv", "/mnt", "/usr/lib", "/usr/libexec", "/var/lib", "/var/log", "/var/cache", "/"} {
		for _, pattern := range []string{"*", "*/*"} {
			if dir == "/" && pattern == "*/*" {
				continue // other programs, this test included, work in /tmp
			}
			files, _ := filepath.Glob(filepath.Join(dir, pattern))
			for _, f := range files {
				if name, _ := filepath.Rel(dir, f); ours.MatchString(name) {
					seen["file"] = append(seen["file"], f)
				}
			}
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if at := strings.Fields(line)[4]; ours.MatchString(at) {
			seen["mount"] = append(seen["mount"], at)
		}
	}
	links, _ := filepath.Glob("/sys/class/net/*")
	cgroups, _ := filepath.Glob("/sys/fs/cgroup/*/rowan-cluster-*")
	cgroups2, _ := filepath.Glob("/sys/fs/cgroup/rowan-cluster-*")
	seen["link"], seen["cgroup"] = links, append(cgroups, cgroups2...)
	for kind, args := range map[string][]string{"route": {"ip", "route"}, "firewall": {"iptables-save"}} {
		out, err := exec.CommandContext(context.Background(), args[0], args[1:]...).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %v: %s", args, err, out)
		}
		for line := range strings.Lines(string(out)) {
			if !strings.HasPrefix(line, "#") {
				seen[kind] = append(seen[kind], regexp.MustCompile(`\[\d+:\d+\]`).ReplaceAllString(strings.TrimSpace(line), ""))
			}
		}
	}
	for _, l := range loops() {
		seen["loop device"] = append(seen["loop device"], l.name+" "+l.file)
	}
	return seen
}

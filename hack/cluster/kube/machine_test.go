package kube

import (
	"context"
	"flag"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/hack/cluster/build"
)

var (
	wanted  = flag.Bool("cluster", false, "bring clusters up: takes minutes, about 2 GiB of memory and 10 GiB of disk")
	version = flag.String("kubernetes", build.Kubernetes, "version of Kubernetes; built with `cluster build --kubernetes`")
)

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
	if programs, err = build.Locate(cache, *version); err != nil {
		t.Fatal(err)
	}
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
	c, err := Up(ctx, Config{Dir: dir, Nodes: nodes, Programs: programs, Snapshots: snapshots, Disk: 4 << 30, Log: testWriter{t}})
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
	devices := loopsOf(t, dir, all)
	index := -1
	if c, err := Open(dir); err == nil {
		index = c.state.Index
	}
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
	for _, l := range loops() {
		if slices.ContainsFunc(devices, func(o loop) bool { return o.name == l.name && o.file == l.file }) {
			t.Errorf("loop device %s is left", l.name)
		}
	}
	after := lookAround(t)
	for kind := range after {
		if kind == ofLast && (before[others] != nil || after[others] != nil) {
			continue
		}
		for _, line := range after[kind] {
			if kind != others && !slices.Contains(before[kind], line) && !foreign(line, index) {
				t.Errorf("left: %s: %s", kind, line)
			}
		}
		for _, line := range before[kind] {
			if kind != others && kind != "file" && !slices.Contains(after[kind], line) && !foreign(line, index) {
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

// loopsOf are the loop devices of all nodes.
func loopsOf(t *testing.T, dir string, all []process) (found []loop) {
	t.Helper()
	var d devices
	if err := gather(all, &d); err != nil {
		t.Fatal(err)
	}
	nodes, _ := filepath.Glob(filepath.Join(dir, "node-*"))
	for _, n := range nodes {
		picked, err := d.ofNode(n, loops())
		if err != nil {
			t.Fatal(err)
		}
		found = append(found, picked...)
	}
	return found
}

// ours are names of what a cluster could leave in folders it shares with the machine; other programs work there, too.
var ours = regexp.MustCompile(`kube|cni|containerd|etcd|rowan|nri|cdi|runc|netns|xtables|coredns`)

// Kinds of what lookAround sees that are not as simple as the others.
const (
	others = "other cluster"
	ofLast = "what goes with the last cluster"
)

// foreign says that a line is about another cluster than the one of that index; they come and go.
func foreign(line string, index int) bool {
	found := regexp.MustCompile(`(?:rowan-k8s|rowan-cluster-|198\.18\.)(\d+)`).FindStringSubmatch(line)
	return found != nil && found[1] != strconv.Itoa(index)
}

// lookAround is what a cluster could leave, kind by kind.
func lookAround(t *testing.T) map[string][]string {
	t.Helper()
	seen := map[string][]string{"file": filesOfOurs(), ofLast: nil}
	list, err := processes()
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range list {
		if p.isInit() {
			seen[others] = append(seen[others], p.args[2])
		}
	}
	for _, name := range append(slices.Clone(written), "fs/inotify/max_user_instances", "fs/inotify/max_user_watches") {
		if text, err := os.ReadFile(settingFile(name)); err == nil {
			seen[ofLast] = append(seen[ofLast], name+" "+strings.TrimSpace(string(text)))
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
	for _, pattern := range []string{"/sys/class/net/*", "/sys/fs/cgroup/*/rowan-cluster-*", "/sys/fs/cgroup/rowan-cluster-*", machineFile} {
		found, _ := filepath.Glob(pattern)
		kind := "link or cgroup"
		if pattern == machineFile {
			kind = ofLast
		}
		seen[kind] = append(seen[kind], found...)
	}
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
	return seen
}

// filesOfOurs are files and folders, of the machine's that nodes see, too, that a cluster's programs could have made.
func filesOfOurs() (found []string) {
	for _, dir := range []string{"/etc", "/opt", "/run", "/srv", "/mnt", "/usr/lib", "/usr/libexec", "/var/lib", "/var/log", "/var/cache"} {
		for _, pattern := range []string{"*", "*/*"} {
			files, _ := filepath.Glob(filepath.Join(dir, pattern))
			for _, f := range files {
				if name, _ := filepath.Rel(dir, f); ours.MatchString(name) && f != machineFile && filepath.Dir(f) != "/run/shm" {
					found = append(found, f)
				}
			}
		}
	}
	return found
}

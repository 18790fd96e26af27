package kube

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/hack/cluster/build"
	"github.com/rowan-csi/rowan/hack/cluster/image"
)

// onEveryNode has a pod of two containers on each node: one serves, one mounts a tmpfs for its node to see.
const onEveryNode = `
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: probe}
spec:
  selector: {matchLabels: {app: probe}}
  template:
    metadata: {labels: {app: probe}}
    spec:
      terminationGracePeriodSeconds: 0
      containers:
      - name: serve
        image: ` + build.Agnhost + `
        imagePullPolicy: Never
        args: [netexec, --http-port=8080]
        readinessProbe: {httpGet: {path: /hostname, port: 8080}, periodSeconds: 1}
      - name: mount
        image: ` + build.Busybox + `
        imagePullPolicy: Never
        command: [sh, -c, "mount -t tmpfs probe /var/lib/probe/mnt && touch /var/lib/probe/mnt/here && while :; do sleep 3600; done"]
        readinessProbe: {exec: {command: [test, -e, /var/lib/probe/mnt/here]}, periodSeconds: 1}
        securityContext: {privileged: true}
        volumeMounts:
        - {name: lib, mountPath: /var/lib/probe, mountPropagation: Bidirectional}
        - {name: dev, mountPath: /dev}
      volumes:
      - {name: lib, hostPath: {path: /var/lib/probe}}
      - {name: dev, hostPath: {path: /dev}}
---
apiVersion: v1
kind: Service
metadata: {name: probe}
spec:
  selector: {app: probe}
  ports: [{port: 80, targetPort: 8080}]
`

func kubectl(t *testing.T, c *Cluster, stdin string, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := c.Kubectl(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := run(cmd)
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// in runs a command on a node.
func in(t *testing.T, n *Node, args ...string) string {
	t.Helper()
	out, err := run(n.Command(t.Context(), args...))
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func TestCluster(t *testing.T) {
	c := bring(t, 3, true)
	if _, err := Up(t.Context(), Config{Dir: c.Dir(), Nodes: 1, Programs: c.cache}); !errors.Is(err, ErrExists) {
		t.Errorf("a second Up in the folder: %v", err)
	}
	for _, n := range c.Nodes() {
		in(t, n, "mkdir", "-p", "/var/lib/probe/mnt")
	}
	kubectl(t, c, onEveryNode, "apply", "-f", "-")
	kubectl(t, c, "", "rollout", "status", "--timeout=120s", "daemonset/probe")
	pods := strings.Fields(kubectl(t, c, "", "get", "pods", "-l", "app=probe", "-o", "jsonpath={.items[*].metadata.name}"))
	if len(pods) != 3 {
		t.Fatalf("pods %v; want one on each node", pods)
	}
	archive := filepath.Join(t.TempDir(), "own.tar")
	if err := (image.Image{Name: "own/image:v1", Files: []image.File{{Path: "/file", Data: []byte("text")}}}).Write(archive); err != nil {
		t.Fatal(err)
	}
	if err := c.Load(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	t.Run("network", func(t *testing.T) { network(t, c, pods) })
	t.Run("nodes are apart", func(t *testing.T) { apart(t, c) })
	t.Run("kubelet dies", func(t *testing.T) { kubeletDies(t, c.Node(1)) })
	t.Run("node stops and comes back", func(t *testing.T) { stopAndStart(t, c, c.Node(2)) })
	t.Run("disk moves", func(t *testing.T) { diskMoves(t, c.Node(1), c.Node(3)) })
	t.Run("reinstalled", func(t *testing.T) { reinstall(t, c.Node(3)) })
}

// network asks for the service by its name, from each pod: cluster DNS, kube-proxy and the routes between nodes.
func network(t *testing.T, c *Cluster, pods []string) {
	for _, pod := range pods {
		answers := map[string]bool{}
		for range 5 {
			answers[kubectl(t, c, "", "exec", pod, "-c", "serve", "--", "/agnhost", "connect", "--timeout=5s", "probe.default.svc.cluster.local:80")] = true
		}
		if len(answers) != 1 || !answers[""] {
			t.Errorf("%s: connecting to the service says %v", pod, answers)
		}
		if log := kubectl(t, c, "", "logs", pod, "-c", "serve"); log == "" {
			t.Errorf("%s has no log", pod)
		}
	}
}

// apart looks at what is each node's own.
func apart(t *testing.T, c *Cluster) {
	machine, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	if strings.Contains(string(machine), "/var/lib/probe") || strings.Contains(string(machine), c.Dir()) {
		t.Error("the machine sees a node's mount")
	}
	seen := map[string]bool{}
	for _, n := range c.Nodes() {
		if got := strings.Count(in(t, n, "cat", "/proc/self/mountinfo"), " /var/lib/probe/mnt "); got != 1 {
			t.Errorf("%s sees %d mounts of its pod; want 1", n.Name(), got)
		}
		if got := in(t, n, "hostname"); got != n.Name() {
			t.Errorf("%s is called %s", n.Name(), got)
		}
		for _, dir := range []string{"/run", RingsKept} {
			if got := in(t, n, "stat", "--file-system", "--format=%T", dir); got != "tmpfs" {
				t.Errorf("%s of %s is %s; want tmpfs", dir, n.Name(), got)
			}
		}
		if id := in(t, n, "cat", "/etc/machine-id"); seen[id] {
			t.Errorf("machine id %s twice", id)
		} else {
			seen[id] = true
		}
	}
}

func kubeletDies(t *testing.T, n *Node) {
	if err := n.KillKubelet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.KillKubelet(t.Context()); !errors.Is(err, ErrDown) {
		t.Errorf("kill it again: %v", err)
	}
	if killed, err := n.Kill(t.Context(), "agnhost"); err != nil || killed != 1 {
		t.Errorf("kill agnhost: %d, %v; want the one in its pod, which outlived the kubelet", killed, err)
	}
	if err := n.StartKubelet(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	kubectl(t, n.c, "", "wait", "pods", "--for=jsonpath={.status.containerStatuses[?(@.name=='serve')].restartCount}=1", "--timeout=60s",
		"--selector=app=probe", "--field-selector=spec.nodeName="+n.Name())
	kubectl(t, n.c, "", "rollout", "status", "--timeout=120s", "daemonset/probe")
}

// stopAndStart is a power cut: files stay, processes, mounts and loop devices do not.
func stopAndStart(t *testing.T, c *Cluster, n *Node) {
	const script = `set -e
		truncate -s 16M /var/lib/disk; one=$(losetup --find --show /var/lib/disk); two=$(losetup --find --show $one)
		mkdir -p /run/fs; mount -t tmpfs fs /run/fs; truncate -s 1M /run/fs/file; three=$(losetup --find --show /run/fs/file)
		mkfs.ext4 -q $two; mkdir -p /run/mnt; mount $two /run/mnt
		echo kept > /var/lib/kept; echo ring > /run/rowan/ring; echo lost > /run/lost
		echo ${one#/dev/} ${two#/dev/} ${three#/dev/}`
	ours := strings.Fields(in(t, n, "sh", "-c", script))
	foreign, err := run(exec.CommandContext(t.Context(), "losetup", "--find", "--show", machineFileOf(t)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", foreign).Run() })
	before := processesOf(t, c.Dir())
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := n.Stop(t.Context()); err != nil {
		t.Errorf("stop it again: %v", err)
	}
	left := map[string]bool{}
	for _, l := range loops() {
		left[l.name] = true
	}
	for _, name := range ours {
		if left[name] {
			t.Errorf("loop device %s of the stopped node is attached", name)
		}
	}
	if !left[strings.TrimPrefix(foreign, "/dev/")] {
		t.Errorf("loop device %s, which is not the node's, was detached", foreign)
	}
	if count, err := n.Runs(); err != nil || count != 0 {
		t.Errorf("%d processes run, %v", count, err)
	}
	for _, other := range []*Node{c.Node(1), c.Node(3)} {
		if count, err := other.Runs(); err != nil || count == 0 {
			t.Errorf("%s: %d processes, %v", other.Name(), count, err)
		}
	}
	if len(before) == len(processesOf(t, c.Dir())) {
		t.Error("as many processes as before")
	}
	if err := errors.Join(n.Start(t.Context()), n.WaitReady(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got := in(t, n, "sh", "-c", "cat /var/lib/kept /run/rowan/ring; ls /run/lost 2>&1 || true"); !strings.HasPrefix(got, "kept\nring\n") ||
		!strings.Contains(got, "No such file") {
		t.Errorf("after the node came back: %s", got)
	}
	kubectl(t, c, "", "wait", "pods", "--for=jsonpath={.status.containerStatuses[?(@.name=='serve')].restartCount}=1", "--timeout=120s",
		"--selector=app=probe", "--field-selector=spec.nodeName="+n.Name())
	kubectl(t, c, "", "rollout", "status", "--timeout=120s", "daemonset/probe")
}

// machineFileOf is a file for a loop device of the machine's own, with the name of one of the node's.
func machineFileOf(t *testing.T) string {
	file := filepath.Join(t.TempDir(), "disk")
	if err := errors.Join(os.WriteFile(file, nil, 0o600), os.Truncate(file, 1<<20)); err != nil {
		t.Fatal(err)
	}
	return file
}

// diskMoves puts a node's disk into another machine. The node it came from has a new one.
func diskMoves(t *testing.T, from, to *Node) {
	in(t, from, "sh", "-c", "echo from > /var/lib/rowan/where && sync /var/lib/rowan/where")
	if got := in(t, from, "stat", "--file-system", "--format=%T", "/var/lib/rowan"); got != "xfs" {
		t.Errorf("a node's disk is %s; want xfs", got)
	}
	if err := to.TakeDisk(from); err == nil {
		t.Error("the disk of a node that runs was moved")
	}
	if err := errors.Join(from.Stop(t.Context()), to.Stop(t.Context()), to.TakeDisk(from), from.Start(t.Context()), to.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got := in(t, to, "cat", "/var/lib/rowan/where"); got != "from" {
		t.Errorf("the moved disk holds %q", got)
	}
	if got := in(t, from, "ls", "/var/lib/rowan"); got != "" {
		t.Errorf("the new disk holds %s", got)
	}
	if err := errors.Join(from.WaitReady(t.Context()), to.WaitReady(t.Context())); err != nil {
		t.Fatal(err)
	}
}

func reinstall(t *testing.T, n *Node) {
	in(t, n, "sh", "-c", "echo old | tee /var/lib/old /run/rowan/old /var/lib/rowan/old")
	if err := n.Wipe(t.Context()); err == nil {
		t.Error("a node that runs was wiped")
	}
	if err := errors.Join(n.Stop(t.Context()), n.Wipe(t.Context()), n.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got := in(t, n, "sh", "-c", "ls /var/lib/old /run/rowan/old /var/lib/rowan/old 2>&1 || true"); strings.Count(got, "No such file") != 3 {
		t.Errorf("after the node was wiped: %s", got)
	}
	if err := n.WaitReady(t.Context()); err != nil {
		t.Fatal(err)
	}
	if got := in(t, n, "ctr", "--namespace", "k8s.io", "images", "list", "--quiet"); !strings.Contains(got, build.Pause) || !strings.Contains(got, "docker.io/own/image:v1") {
		t.Errorf("the wiped node has the images\n%s", got)
	}
}

// TestDownAfterCrash kills Up at several moments; Down finds what there is.
func TestDownAfterCrash(t *testing.T) {
	needCluster(t)
	tool := filepath.Join(t.TempDir(), "cluster")
	if out, err := exec.CommandContext(t.Context(), "go", "build", "-o", tool, "..").CombinedOutput(); err != nil {
		t.Fatalf("build the command: %v\n%s", err, out)
	}
	moments := map[string]func(dir string) error{
		"folder is claimed":      func(dir string) error { _, err := os.Stat(stateFile(dir)); return err },
		"control plane is there": func(dir string) error { return hasInit(dir, 0) },
		"last node is there":     func(dir string) error { return hasInit(dir, 2) },
		"kubelet runs":           func(dir string) error { _, err := os.Stat(filepath.Join(dir, "log", "kubelet-node-1.log")); return err },
	}
	for name, moment := range moments {
		t.Run(name, func(t *testing.T) {
			before := lookAround(t)
			dir := filepath.Join(t.TempDir(), "cluster")
			cmd := exec.CommandContext(t.Context(), tool, "up", "--nodes", "2", "--dir", dir)
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
			defer cancel()
			err := until(ctx, name, func() error { return moment(dir) })
			if kerr := cmd.Process.Signal(unix.SIGKILL); err != nil || kerr != nil {
				t.Fatal(err, kerr)
			}
			_ = cmd.Wait()
			takeDown(t, dir, before)
		})
	}
}

func hasInit(dir string, number int) error {
	found, err := inits(dir)
	if err == nil && found[number] == 0 {
		err = fmt.Errorf("%s is not there", nodeName(number))
	}
	return err
}

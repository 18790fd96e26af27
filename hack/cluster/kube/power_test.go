package kube

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rowan-csi/rowan/hack/cluster/build"
)

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
	in(t, from, "sh", "-c", "echo from > /var/lib/rowan/where && sync /var/lib/rowan/where && echo ring > /run/rowan/ring")
	if got := in(t, from, "stat", "--file-system", "--format=%T", "/var/lib/rowan"); got != "xfs" {
		t.Errorf("a node's disk is %s; want xfs", got)
	}
	if err := to.TakeDisk(t.Context(), from); err == nil {
		t.Error("the disk of a node that runs was moved")
	}
	if err := errors.Join(from.Stop(t.Context()), to.Stop(t.Context()), to.TakeDisk(t.Context(), from), from.Start(t.Context()), to.Start(t.Context())); err != nil {
		t.Fatal(err)
	}
	if got := in(t, to, "cat", "/var/lib/rowan/where"); got != "from" {
		t.Errorf("the moved disk holds %q", got)
	}
	if got := in(t, to, "cat", "/run/rowan/ring"); got != "ring" {
		t.Errorf("the moved disk came with rings that hold %q", got)
	}
	if got := in(t, from, "ls", "/run/rowan"); strings.Contains(got, "ring") {
		t.Errorf("the node whose disk was taken has kept its rings: %s", got)
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
	got := in(t, n, "ctr", "--namespace", "k8s.io", "images", "list", "--quiet")
	if !strings.Contains(got, build.Pause) || !strings.Contains(got, "docker.io/own/image:v1") {
		t.Errorf("the wiped node has the images\n%s", got)
	}
}

package kube

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

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

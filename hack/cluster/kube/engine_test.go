package kube

import (
	"context"
	"errors"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/rowan-csi/rowan/hack/cluster/build"
)

func TestRowan(t *testing.T) {
	c := bring(t, 1, false)
	t.Run("image", func(t *testing.T) { toolsRun(t, c) })
	t.Run("node stops under an engine", func(t *testing.T) { stopUnderEngine(t, c.Node(1)) })
}

// toolsRun starts the programs of Rowan's image in containers, where only the image's libraries are.
func toolsRun(t *testing.T, c *Cluster) {
	archive := filepath.Join(t.TempDir(), "rowan.tar")
	if err := build.Rowan(t.Context(), "../../..", build.RowanImage, archive); err != nil {
		t.Fatal(err)
	}
	if err := c.Load(t.Context(), archive); err != nil {
		t.Fatal(err)
	}
	var pod strings.Builder
	pod.WriteString("{apiVersion: v1, kind: Pod, metadata: {name: tools}, spec: {restartPolicy: Never, initContainers: [")
	for i, command := range []string{"mkfs.ext4, -V", "e2fsck, -V", "mkfs.xfs, -V", "xfs_growfs, -V", "blkid, -V", "wipefs, -V",
		"mount, -V", "umount, -V", "rowan-engine, --help", "rowan-driver, --help"} {
		pod.WriteString("{name: tool-" + string(rune('a'+i)) + ", image: '" + build.RowanImage + "', imagePullPolicy: Never, command: [" + command + "]}, ")
	}
	pod.WriteString("], containers: [{name: main, image: '" + build.RowanImage + "', imagePullPolicy: Never, command: [rowanctl, --help]}]}}")
	kubectl(t, c, pod.String(), "apply", "-f", "-")
	kubectl(t, c, "", "wait", "pod/tools", "--for=jsonpath={.status.phase}=Succeeded", "--timeout=60s")
}

// stopUnderEngine cuts a node's power while an engine serves a mounted volume. Its loop device is over a FUSE file that is mounted nowhere, whose
// server dies with the node; nothing of it may be left. When the node is back, the engine opens its pool, for its ring was kept, and has what was
// written.
func stopUnderEngine(t *testing.T, n *Node) {
	bin := t.TempDir()
	if _, err := run(exec.CommandContext(t.Context(), "go", "build", "-o", bin+"/", "../../../cmd/rowan-engine", "../../../cmd/rowanctl")); err != nil {
		t.Fatal(err)
	}
	ctl := filepath.Join(bin, "rowanctl")
	start := func() {
		t.Helper()
		if err := n.c.daemon(t.Context(), n.number, filepath.Join(bin, "rowan-engine")); err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), startTime)
		defer cancel()
		if err := until(ctx, "the engine answers", func() error {
			_, err := run(n.Command(ctx, ctl, "pool", "list"))
			return err
		}); err != nil {
			t.Fatalf("%v\n%s", err, tail(n.c.logFile("rowan-engine-"+n.Name())))
		}
	}
	start()
	in(t, n, ctl, "pool", "create", "fast", "--dir", "/var/lib/rowan/fast", "--size", "1Gi")
	in(t, n, ctl, "volume", "create", "db", "--size", "256Mi")
	device := in(t, n, ctl, "volume", "attach", "db")
	in(t, n, "sh", "-c", "mkfs.ext4 -q "+device+" && mkdir -p /run/db && mount "+device+" /run/db && echo written > /run/db/file && sync")
	if err := n.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	for _, l := range loops() {
		if "/dev/"+l.name == device {
			t.Errorf("%s is attached to %s although its node is stopped", device, l.file)
		}
	}
	if err := errors.Join(n.Start(t.Context()), n.WaitReady(t.Context())); err != nil {
		t.Fatal(err)
	}
	start()
	device = in(t, n, ctl, "volume", "attach", "db")
	in(t, n, "mkdir", "-p", "/run/db")
	in(t, n, "mount", device, "/run/db")
	if got := in(t, n, "cat", "/run/db/file"); got != "written" {
		t.Errorf("after the node came back the file holds %q", got)
	}
}

package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
)

const (
	services   = "10.96.0.0/16"
	firstIP    = "10.96.0.1"  // of the service kubernetes
	dnsIP      = "10.96.0.10" // of cluster DNS
	maxIndexes = 64
)

// linkName is the machine's end of the link to a cluster.
func linkName(index int) string { return fmt.Sprintf("rowan-k8s%d", index) }

// address of the control plane (0) and of the nodes; the machine's own ends in 254.
func (c *Cluster) address(number int) string {
	last := number + 10
	if number == 0 {
		last = 1
	}
	return fmt.Sprintf("198.18.%d.%d", c.state.Index, last)
}

func pods(number int) string { return fmt.Sprintf("10.244.%d.0/24", number) }

// server is the API server's address.
func (c *Cluster) server() string { return "https://" + c.address(0) + ":6443" }

// freeIndex finds a network that nobody on this machine uses.
func freeIndex() (int, error) {
	used, err := net.InterfaceAddrs()
	if err != nil {
		return 0, fmt.Errorf("list the machine's addresses: %w", err)
	}
	for index := range maxIndexes {
		network := netip.MustParsePrefix(fmt.Sprintf("198.18.%d.0/24", index))
		free := true
		for _, u := range used {
			if prefix, err := netip.ParsePrefix(u.String()); err == nil && prefix.Overlaps(network) {
				free = false
			}
		}
		if free {
			return index, nil
		}
	}
	return 0, fmt.Errorf("all %d networks from 198.18.0.0/24 on are in use: take a cluster down", maxIndexes)
}

// ip runs commands of ip(8), one a line, in the network of that number.
func (c *Cluster) ip(ctx context.Context, number int, lines ...string) error {
	pid, err := c.init(number)
	if err != nil {
		return err
	}
	return ipBatch(exec.CommandContext(ctx, "nsenter", "--target", strconv.Itoa(pid), "--net", "--", "ip", "-batch", "-"), lines)
}

func ipBatch(cmd *exec.Cmd, lines []string) error {
	cmd.Stdin = strings.NewReader(strings.Join(lines, "\n") + "\n")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("ip %s: %w: %s", strings.Join(lines, "; "), err, out)
	}
	return nil
}

// plug sets up the switch, in the control plane's namespace, and the machine's link to it. In the machine's own namespace br_netfilter would send
// what goes from node to node through the machine's FORWARD chain, where Docker may drop it.
func (c *Cluster) plug(ctx context.Context) error {
	pid, err := c.init(0)
	if err != nil {
		return err
	}
	link := linkName(c.state.Index)
	if err := c.ip(ctx, 0, "link set lo up", "link add br0 type bridge", "addr add "+c.address(0)+"/24 dev br0", "link set br0 up"); err != nil {
		return err
	}
	err = ipBatch(exec.CommandContext(ctx, "ip", "-batch", "-"), []string{
		fmt.Sprintf("link add to-host netns %d type veth peer name %s", pid, link),
		fmt.Sprintf("addr add 198.18.%d.254/24 dev %s", c.state.Index, link),
		"link set " + link + " up",
	})
	if err != nil {
		return err
	}
	return errors.Join(c.ip(ctx, 0, "link set to-host master br0 up"), c.forward(ctx, 0))
}

// plugNode links a node to the switch. The default route ends in the control plane's namespace, which has no way out: other addresses fail at once.
func (c *Cluster) plugNode(ctx context.Context, number int) error {
	pid, err := c.init(number)
	if err != nil {
		return err
	}
	name := "to-" + strconv.Itoa(number)
	err = c.ip(ctx, 0, fmt.Sprintf("link add %s type veth peer name eth0 netns %d", name, pid), "link set "+name+" master br0 up")
	if err != nil {
		return err
	}
	lines := []string{"link set lo up", "addr add " + c.address(number) + "/24 dev eth0", "link set eth0 up", "route add default via " + c.address(0)}
	for other := 1; other <= c.state.Nodes; other++ {
		if other != number {
			lines = append(lines, "route add "+pods(other)+" via "+c.address(other))
		}
	}
	return errors.Join(c.ip(ctx, number, lines...), c.forward(ctx, number),
		c.ip(ctx, 0, "route replace "+pods(number)+" via "+c.address(number))) // the API server calls webhooks in pods
}

// forward makes a network pass packets on. A connection whose process was killed is given up after two tries: each would keep the namespace, and
// with it the links, for minutes after everything has ended.
func (c *Cluster) forward(ctx context.Context, number int) error {
	_, err := run(c.command(ctx, number, "sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv4/tcp_orphan_retries"))
	return err
}

// unplug deletes the link of a stopped node, whose namespace may last a moment longer than its processes.
func (c *Cluster) unplug(ctx context.Context, number int) error {
	err := c.ip(ctx, 0, fmt.Sprintf("link delete to-%d", number))
	if err == nil || errors.Is(err, ErrDown) || strings.Contains(err.Error(), "Cannot find device") {
		return nil
	}
	return err
}

// unplugMachine deletes the machine's link to the cluster.
func (c *Cluster) unplugMachine(ctx context.Context) error {
	link := linkName(c.state.Index)
	if _, err := os.Lstat("/sys/class/net/" + link); err != nil {
		return nil
	}
	if _, err := run(exec.CommandContext(ctx, "ip", "link", "delete", link)); err != nil && !strings.Contains(err.Error(), "Cannot find device") {
		return err
	}
	return nil
}

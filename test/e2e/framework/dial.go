package framework

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"strings"
	"time"
)

// DialOnNode connects to a unix socket of a node: through socat, run there.
func (c *Cluster) DialOnNode(ctx context.Context, node, socket string) (net.Conn, error) {
	if c.NodeExec == "" {
		return nil, errors.New("no way into nodes: give -node-exec")
	}
	var args []string
	for _, word := range strings.Fields(c.NodeExec) {
		args = append(args, strings.ReplaceAll(word, "{node}", node))
	}
	args = append(args, "socat", "-", "UNIX-CONNECT:"+socket)
	conn := &execConn{cmd: exec.Command(args[0], args[1:]...), socket: socket} // it outlives the dialling, and so ctx
	var err error
	if conn.Writer, err = conn.cmd.StdinPipe(); err != nil {
		return nil, fmt.Errorf("connect to %s on node %s: %w", socket, node, err)
	}
	if conn.Reader, err = conn.cmd.StdoutPipe(); err != nil {
		return nil, fmt.Errorf("connect to %s on node %s: %w", socket, node, err)
	}
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	if err := conn.cmd.Start(); err != nil {
		return nil, fmt.Errorf("connect to %s on node %s: %w", socket, node, err)
	}
	return conn, nil
}

// execConn is a connection over a process' input and output. It has no deadlines.
type execConn struct {
	io.Reader
	io.Writer
	cmd    *exec.Cmd
	socket string
}

// Close ends the process.
func (c *execConn) Close() error {
	err := c.cmd.Process.Kill()
	_ = c.cmd.Wait() // it says that it was killed
	return err
}

func (c *execConn) LocalAddr() net.Addr              { return &net.UnixAddr{Net: "unix"} }
func (c *execConn) RemoteAddr() net.Addr             { return &net.UnixAddr{Net: "unix", Name: c.socket} }
func (c *execConn) SetDeadline(time.Time) error      { return nil }
func (c *execConn) SetReadDeadline(time.Time) error  { return nil }
func (c *execConn) SetWriteDeadline(time.Time) error { return nil }

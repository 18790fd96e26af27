package rpc

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/engine"
)

// Listen makes the socket, mode 0600, and its folder if need be. A socket file that nobody listens on is replaced; one where somebody does is left
// alone. Closing the listener removes the file.
func Listen(socket string) (net.Listener, error) {
	if !filepath.IsAbs(socket) {
		return nil, fmt.Errorf("listen on %q: %w: give an absolute path", socket, engine.ErrInvalid)
	}
	if err := os.MkdirAll(filepath.Dir(socket), 0o755); err != nil {
		return nil, fmt.Errorf("make the socket's folder: %w", err)
	}
	// The lock decides between two that both find a stale file; it goes with the process.
	lock, err := os.OpenFile(socket+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open the socket's lock: %w", err)
	}
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		lock.Close()
		return nil, fmt.Errorf("listen on %s: another process has its lock: %w", socket, engine.ErrLocked)
	}
	l, err := bind(socket)
	if err != nil {
		lock.Close()
		return nil, err
	}
	return &listener{Listener: l, socket: socket, lock: lock}, nil
}

// bind listens under another name, so that the socket appears under its own with its mode set and in place of a stale one.
func bind(socket string) (net.Listener, error) {
	if err := checkStale(socket); err != nil {
		return nil, err
	}
	fresh := socket + ".new"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	l.SetUnlinkOnClose(false)
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		err = os.Rename(fresh, socket)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("listen on %s: %w", socket, err)
	}
	return l, nil
}

// checkStale answers nil if the path is free, or a socket that nobody listens on.
func checkStale(socket string) error {
	st, err := os.Lstat(socket)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("listen on %s: %w", socket, err)
	}
	if st.Mode().Type() != os.ModeSocket {
		return fmt.Errorf("listen on %s: %w: there is a file that is no socket; move it away", socket, engine.ErrExists)
	}
	conn, err := net.DialTimeout("unix", socket, time.Second)
	switch {
	case err == nil:
		conn.Close()
		return fmt.Errorf("listen on %s: another process listens there: %w", socket, engine.ErrLocked)
	case errors.Is(err, unix.ECONNREFUSED):
		return nil
	}
	// Such as a full backlog: somebody is there.
	return fmt.Errorf("listen on %s: a process seems to listen there: %w: %w", socket, engine.ErrLocked, err)
}

type listener struct {
	net.Listener
	socket string
	lock   *os.File
}

func (l *listener) Close() error {
	err := l.Listener.Close()
	if errors.Is(err, net.ErrClosed) {
		return err // gRPC closes twice; by now the file may be a successor's
	}
	rerr := os.Remove(l.socket)
	return errors.Join(err, rerr, l.lock.Close())
}

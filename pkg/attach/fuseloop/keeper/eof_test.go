package keeper

import (
	"net"
	"os"
	"runtime"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestAnswerBeforeClose receives what is sent, right before the close, at the very moment of the receiver's look. The kernel then says EOF now and
// then although the message is there: some ten times in this test.
func TestAnswerBeforeClose(t *testing.T) {
	m, err := message{op: opDone}.encode()
	if err != nil {
		t.Fatal(err)
	}
	var other, done atomic.Int64
	other.Store(-1)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		runtime.LockOSThread()
		for {
			fd := other.Swap(-1)
			switch {
			case fd == -2:
				return
			case fd >= 0:
				_, _ = unix.Write(int(fd), m)
				_ = unix.Close(int(fd))
				done.Add(1)
			}
		}
	}()
	n := int64(0)
	for end := time.Now().Add(5 * time.Second); time.Now().Before(end) && !t.Failed(); {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		f := os.NewFile(uintptr(fds[0]), "socket")
		c, err := net.FileConn(f)
		_ = f.Close()
		if err != nil {
			t.Fatal(err)
		}
		other.Store(int64(fds[1]))
		if _, _, err := (conn{c.(*net.UnixConn)}).receive(exchange); err != nil {
			t.Errorf("exchange %d: %v", n, err)
		}
		_ = c.Close()
		for n++; done.Load() < n; {
			runtime.Gosched()
		}
	}
	other.Store(-2)
	<-ended
	t.Logf("%d exchanges", n)
}

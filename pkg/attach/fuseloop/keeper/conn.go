package keeper

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// exchange bounds each send and receive: no peer may hold the other up.
const exchange = 5 * time.Second

// conn sends and receives messages with descriptors.
type conn struct{ *net.UnixConn }

func (c conn) send(m message, fds ...int) error {
	b, err := m.encode()
	if err != nil {
		return err
	}
	if err := c.SetWriteDeadline(time.Now().Add(exchange)); err != nil {
		return fmt.Errorf("set deadline: %w", err)
	}
	var oob []byte
	if len(fds) > 0 {
		oob = unix.UnixRights(fds...)
	}
	if _, _, err := c.WriteMsgUnix(b, oob, nil); err != nil {
		return fmt.Errorf("send to %v: %w", c.RemoteAddr(), err)
	}
	return nil
}

// receive reads one message; its descriptors are the caller's. patience 0 waits for ever.
func (c conn) receive(patience time.Duration) (message, []*os.File, error) {
	var deadline time.Time
	if patience > 0 {
		deadline = time.Now().Add(patience)
	}
	if err := c.SetReadDeadline(deadline); err != nil {
		return message{}, nil, fmt.Errorf("set deadline: %w", err)
	}
	b, oob := make([]byte, MaxMessage+1), make([]byte, unix.CmsgSpace(4*MaxFDs))
	n, oobn, flags, err := c.read(b, oob)
	if errors.Is(err, io.EOF) {
		n, oobn, flags, err = c.read(b, oob) // see read
	}
	if err != nil {
		return message{}, nil, fmt.Errorf("receive: %w", err)
	}
	files, err := rights(oob[:oobn])
	if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
		err = fmt.Errorf("message or its descriptors are cut off: %w", ErrProtocol)
	}
	var m message
	if err == nil {
		m, err = decode(b[:n])
	}
	if err != nil {
		closeAll(files)
		return message{}, nil, err
	}
	return m, files, nil
}

// read is recvmsg. EOF must be seen twice to be believed: the kernel (unix_dgram_recvmsg) looks into the queue, finds it empty, and then, in a step
// of its own, looks whether the other end has closed. An answer that was sent between the two, right before the close, is in the queue, and EOF is
// what is returned.
func (c conn) read(b, oob []byte) (n, oobn, flags int, err error) {
	n, oobn, flags, _, err = c.ReadMsgUnix(b, oob) // Go asks for close-on-exec
	if err == nil && n == 0 && oobn == 0 {
		err = io.EOF
	}
	return n, oobn, flags, err
}

func rights(oob []byte) ([]*os.File, error) {
	parts, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, fmt.Errorf("parse control message: %w", err)
	}
	var files []*os.File
	for _, part := range parts {
		if part.Header.Level != unix.SOL_SOCKET || part.Header.Type != unix.SCM_RIGHTS {
			continue
		}
		fds, err := unix.ParseUnixRights(&part)
		if err != nil {
			closeAll(files)
			return nil, fmt.Errorf("parse descriptors: %w", err)
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "kept"))
		}
	}
	return files, nil
}

// checkPeer refuses a peer that runs as another user: the descriptors are as good as the volumes.
func (c conn) checkPeer(uid uint32) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return fmt.Errorf("look at peer: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	if err := raw.Control(func(fd uintptr) { cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return fmt.Errorf("look at peer: %w", err)
	}
	if credErr != nil {
		return fmt.Errorf("look at peer: %w", credErr)
	}
	if cred.Uid != uid {
		return fmt.Errorf("process %d of user %d where only user %d may speak: %w", cred.Pid, cred.Uid, uid, ErrPeer)
	}
	return nil
}

func closeAll(files []*os.File) {
	for _, f := range files {
		_ = f.Close()
	}
}

package fuseloop

import (
	"bytes"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/loopdev"
	"github.com/rowan-csi/rowan/pkg/block"
)

// handle carries out a request and answers it. b holds a write's payload, and takes the answer.
func (s *server) handle(b *buffer, r request) {
	switch r.opcode {
	case opRead, opWrite, opFallocate:
		s.io(b, r)
	case opFsync:
		s.reply(b, r.unique, errno(s.dev.Flush()), 0)
	case opForget, opBatchForget, opNotifyReply, opInterrupt: // not answered; a request under way is never given up
	default:
		errNo, size := s.meta(b, r)
		s.reply(b, r.unique, errNo, size)
		if r.opcode == opRelease {
			s.released()
		}
	}
}

// io does the requests that move data or drop it.
func (s *server) io(b *buffer, r request) {
	t, ok := r.parseTransfer()
	if !ok || r.node != fileNode {
		s.reply(b, r.unique, unix.EIO, 0)
		return
	}
	data := b.mem[bufferHead:]
	switch {
	case r.opcode == opRead:
		size := int(t.length)
		if end := s.dev.Size(); t.off >= end {
			size = 0
		} else if int64(size) > end-t.off {
			size = int(end - t.off)
		}
		if size > 0 {
			if _, err := s.dev.ReadAt(data[:size], t.off); err != nil {
				s.reply(b, r.unique, errno(err), 0)
				return
			}
		}
		s.reply(b, r.unique, 0, size)
	case s.ro:
		s.reply(b, r.unique, unix.EROFS, 0)
	case r.opcode == opWrite:
		if _, err := s.dev.WriteAt(data[:t.length], t.off); err != nil {
			s.reply(b, r.unique, errno(err), 0)
			return
		}
		clear(data[:8])
		order.PutUint32(data, uint32(t.length))
		s.reply(b, r.unique, 0, 8)
	case t.mode == fallocPunchKeep:
		s.reply(b, r.unique, errno(s.dev.Discard(t.off, t.length)), 0)
	case t.mode == fallocZeroKeep:
		s.reply(b, r.unique, errno(s.dev.WriteZeroes(t.off, t.length)), 0)
	default:
		s.reply(b, r.unique, unix.EOPNOTSUPP, 0)
	}
}

// meta answers what opens, looks and closes; size bytes of answer are in the buffer.
func (s *server) meta(b *buffer, r request) (errNo unix.Errno, size int) {
	out := b.mem[bufferHead : bufferHead+256]
	name := r.body // lies before out, but for the end of a long name: read before out is cleared
	isFile := r.opcode == opLookup && bytes.Equal(bytes.TrimSuffix(name, []byte{0}), []byte(s.name))
	if r.opcode == opInit {
		return s.init(out, r.body)
	}
	clear(out)
	switch r.opcode {
	case opLookup:
		if r.node != rootNode || !isFile {
			return unix.ENOENT, 0
		}
		order.PutUint64(out, fileNode)
		order.PutUint64(out[16:], attrTime)
		order.PutUint64(out[24:], attrTime)
		s.attr(fileNode).put(out[40:])
		return 0, 40 + attrLen
	case opSetattr: // nothing can be set, but asking is how refresh gets the size across
		if len(r.body) < 4 || order.Uint32(r.body)&setattrSize != 0 {
			return unix.EPERM, 0
		}
		fallthrough
	case opGetattr:
		if r.node != rootNode && r.node != fileNode {
			return unix.ENOENT, 0
		}
		order.PutUint64(out, attrTime)
		s.attr(r.node).put(out[16:])
		return 0, 16 + attrLen
	case opOpen:
		if r.node != fileNode {
			return unix.EISDIR, 0
		}
		order.PutUint32(out[8:], openFlags)
		return 0, 16
	case opStatfs: // loop takes its discard granularity from the block size
		order.PutUint64(out, uint64(s.dev.Size()/4096))
		order.PutUint32(out[40:], 4096)
		order.PutUint32(out[44:], 255)
		order.PutUint32(out[48:], 4096)
		return 0, 80
	case opRelease, opDestroy:
		return 0, 0
	case opFlush:
		// The kernel then never asks again. With 0 it would, and a process that closes the file while nobody serves would hang for good.
		return unix.ENOSYS, 0
	}
	return unix.ENOSYS, 0
}

func (s *server) init(out, body []byte) (unix.Errno, int) {
	p, err := parseInit(body)
	clear(out)
	s.initOnce.Do(func() {
		s.proto, s.initErr = p, err
		close(s.ready)
	})
	if err != nil {
		return unix.EPROTO, 0
	}
	p.putInit(out, os.Getpagesize())
	return 0, initOutLen
}

func (s *server) attr(node uint64) attributes {
	a := attributes{node: node, nlink: 1, uid: uint32(os.Getuid())}
	switch {
	case node == rootNode:
		a.mode, a.nlink = unix.S_IFDIR|0o500, 2
	default:
		a.mode, a.size = unix.S_IFREG|loopdev.FileMode(s.ro), s.dev.Size()
	}
	return a
}

// reply answers with an error, or with the size bytes at the buffer's payload. The header goes right before them.
func (s *server) reply(b *buffer, unique uint64, errNo unix.Errno, size int) {
	if errNo != 0 {
		size = 0
	}
	out := b.mem[bufferHead-outHeaderLen : bufferHead+size]
	order.PutUint32(out, uint32(len(out)))
	order.PutUint32(out[4:], uint32(-int32(errNo)))
	order.PutUint64(out[8:], unique)
	for {
		_, err := unix.Write(int(s.fuse.Fd()), out)
		switch {
		case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENODEV), errors.Is(err, unix.EPERM): // nobody waits for it any more
			return
		case errors.Is(err, unix.EINTR), errors.Is(err, unix.EAGAIN):
			continue
		}
		s.fail(fmt.Errorf("answer a request: %w", err))
		if size == 0 {
			return
		}
		s.reply(b, unique, unix.EIO, 0) // the kernel must hear something, or whoever asked waits for ever
		return
	}
}

// errno is what the kernel is told. ENOSYS and EOPNOTSUPP never go out for a device's error: the kernel would stop asking.
func errno(err error) unix.Errno {
	switch {
	case err == nil:
		return 0
	case errors.Is(err, block.ErrNoSpace):
		return unix.ENOSPC
	case errors.Is(err, block.ErrReadOnly):
		return unix.EROFS
	}
	return unix.EIO
}

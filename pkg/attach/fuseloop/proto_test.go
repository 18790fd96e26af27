package fuseloop

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/block"
)

// encodeRequest makes a request as the kernel does.
func encodeRequest(opcode uint32, node uint64, body []byte) []byte {
	b := make([]byte, inHeaderLen, inHeaderLen+len(body))
	order.PutUint32(b, uint32(inHeaderLen+len(body)))
	order.PutUint32(b[4:], opcode)
	order.PutUint64(b[8:], 1<<63|2)
	order.PutUint64(b[16:], node)
	return append(b, body...)
}

func transferBody(off uint64, size uint32, payload []byte) []byte {
	b := make([]byte, writeInLen)
	order.PutUint64(b[8:], off)
	order.PutUint32(b[16:], size)
	return append(b, payload...)
}

// FuzzRequest carries out whatever comes: it must not panic, and a write must never reach beyond its payload.
func FuzzRequest(f *testing.F) {
	f.Add(encodeRequest(opInit, 0, make([]byte, 64)))
	f.Add(encodeRequest(opLookup, rootNode, []byte("rowan-x\x00")))
	f.Add(encodeRequest(opGetattr, fileNode, make([]byte, 16)))
	f.Add(encodeRequest(opRead, fileNode, transferBody(0, 4096, nil)))
	f.Add(encodeRequest(opRead, fileNode, transferBody(1<<63, 1<<31, nil)))
	f.Add(encodeRequest(opWrite, fileNode, transferBody(512, 512, make([]byte, 512))))
	f.Add(encodeRequest(opWrite, fileNode, transferBody(512, 1<<20, make([]byte, 512))))
	f.Add(encodeRequest(opFallocate, fileNode, make([]byte, 32)))
	f.Add(encodeRequest(opFsync, fileNode, nil))
	f.Add(encodeRequest(77, fileNode, []byte("?")))
	null, err := os.OpenFile("/dev/null", os.O_RDWR, 0)
	if err != nil {
		f.Fatal(err)
	}
	mem := newMemory(4 * maxIO)
	b, err := mem.get()
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		s := newServer(null, block.NewRAM(1<<20, 512), mem, "rowan-x", false, 1)
		n := copy(b.mem[inStart:], in)
		r, err := parseRequest(b.mem[inStart : inStart+n])
		if err != nil {
			return
		}
		if c := r.charge(); c < 0 || c > maxIO {
			t.Errorf("charge is %d", c)
		}
		if tr, ok := r.parseTransfer(); ok && r.opcode == opWrite && tr.length > int64(len(r.body)-writeInLen) {
			t.Errorf("write of %d bytes with a payload of %d", tr.length, len(r.body)-writeInLen)
		}
		s.handle(b, r)
	})
}

func FuzzRecord(f *testing.F) {
	b, err := record{File: identity{1, 2}, Name: "rowan-x", Loop: 3, Sector: 512, Meta: []byte("m")}.encode()
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := decodeRecord(b)
		if err != nil {
			return
		}
		again, err := r.encode()
		if err != nil {
			t.Fatal(err)
		}
		if back, err := decodeRecord(again); err != nil || fmt.Sprint(back) != fmt.Sprint(r) {
			t.Errorf("%+v comes back as %+v, %v", r, back, err)
		}
	})
}

// TestAnswers sends requests to a server without a kernel and looks at what it writes.
func TestAnswers(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "kernel"), os.NewFile(uintptr(fds[1]), "server")
	t.Cleanup(func() { _, _ = ours.Close(), theirs.Close() })
	dev := block.NewRAM(1<<20, 512)
	s := newServer(theirs, dev, newMemory(4*maxIO), "rowan-x", false, 4)
	if err := s.begin(); err != nil {
		t.Fatal(err)
	}
	ask := func(req []byte) (int32, []byte) {
		t.Helper()
		if _, err := unix.Write(fds[0], req); err != nil {
			t.Fatal(err)
		}
		out := make([]byte, bufferLen)
		n, err := unix.Read(fds[0], out)
		if err != nil || n < outHeaderLen || int(order.Uint32(out)) != n || order.Uint64(out[8:]) != 1<<63|2 {
			t.Fatalf("answer of %d bytes, %v: %x", n, err, out[:min(n, 32)])
		}
		return int32(order.Uint32(out[4:])), out[outHeaderLen:n]
	}
	init := make([]byte, 64)
	order.PutUint32(init, 7)
	order.PutUint32(init[4:], 45)
	order.PutUint32(init[12:], 0xffffffff)
	order.PutUint32(init[16:], 0xffffffff)
	if code, out := ask(encodeRequest(opInit, 0, init)); code != 0 || len(out) != initOutLen || order.Uint32(out[20:]) != maxIO {
		t.Errorf("INIT: %d, %x", code, out)
	}
	if s.proto.Caps != wantedCaps {
		t.Errorf("agreed on %#x; want %#x", s.proto.Caps, wantedCaps)
	}
	data := bytes.Repeat([]byte{5}, 128<<10) // more than is copied out of the landing buffer
	for _, size := range []int{512, 64 << 10, 128 << 10} {
		if code, out := ask(encodeRequest(opWrite, fileNode, transferBody(4096, uint32(size), data[:size]))); code != 0 || int(order.Uint32(out)) != size {
			t.Errorf("WRITE of %d: %d, %x", size, code, out)
		}
		if code, out := ask(encodeRequest(opRead, fileNode, transferBody(4096, uint32(size), nil))); code != 0 || !bytes.Equal(out, data[:size]) {
			t.Errorf("READ of %d: %d, %d bytes", size, code, len(out))
		}
	}
	if code, out := ask(encodeRequest(opRead, fileNode, transferBody(1<<20-512, 4096, nil))); code != 0 || len(out) != 512 {
		t.Errorf("READ over the end: %d, %d bytes; want the 512 there are", code, len(out))
	}
	for name, c := range map[string]struct {
		req  []byte
		want syscall.Errno
	}{
		"unknown":        {encodeRequest(77, fileNode, nil), syscall.ENOSYS},
		"FLUSH":          {encodeRequest(opFlush, fileNode, make([]byte, 24)), syscall.ENOSYS},
		"short WRITE":    {encodeRequest(opWrite, fileNode, transferBody(0, 4096, make([]byte, 512))), syscall.EIO},
		"WRITE far out":  {encodeRequest(opWrite, fileNode, transferBody(1<<40, 512, make([]byte, 512))), syscall.EIO},
		"READ of folder": {encodeRequest(opRead, rootNode, transferBody(0, 512, nil)), syscall.EIO},
		"other name":     {encodeRequest(opLookup, rootNode, []byte("x\x00")), syscall.ENOENT},
		"truncation":     {encodeRequest(opSetattr, fileNode, []byte{setattrSize, 0, 0, 0}), syscall.EPERM},
		"other mode":     {encodeRequest(opFallocate, fileNode, make([]byte, 32)), syscall.EOPNOTSUPP},
	} {
		if code, _ := ask(c.req); code != -int32(c.want) {
			t.Errorf("%s is answered %d; want %d", name, code, -int32(c.want))
		}
	}
	if err := unix.Shutdown(fds[0], unix.SHUT_WR); err != nil { // an empty read, which no kernel sends
		t.Fatal(err)
	}
	s.stopping.Store(true)
	<-s.ended
}

func TestInitRefusesOldKernels(t *testing.T) {
	body := make([]byte, 64)
	order.PutUint32(body, 7)
	if _, err := parseInit(body); !errors.Is(err, attach.ErrUnavailable) {
		t.Errorf("a kernel without anything: %v; want ErrUnavailable", err)
	}
	if _, err := parseInit(body[:8]); !errors.Is(err, attach.ErrUnavailable) {
		t.Errorf("a short INIT: %v; want ErrUnavailable", err)
	}
}

func TestErrno(t *testing.T) {
	for err, want := range map[error]unix.Errno{
		nil: 0, fmt.Errorf("x: %w", block.ErrNoSpace): unix.ENOSPC, block.ErrReadOnly: unix.EROFS, block.ErrClosed: unix.EIO,
		block.ErrOutOfRange: unix.EIO, unix.ENOSYS: unix.EIO, unix.EOPNOTSUPP: unix.EIO, errors.New("other"): unix.EIO,
	} {
		if got := errno(err); got != want {
			t.Errorf("%v becomes %v; want %v", err, got, want)
		}
	}
}

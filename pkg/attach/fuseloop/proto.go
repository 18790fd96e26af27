package fuseloop

import (
	"encoding/binary"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/attach"
)

// The FUSE wire format, as far as serving one file needs it: linux/fuse.h of kernel 6.18, protocol 7. Everything is in the machine's byte order.

const (
	opLookup      = 1
	opForget      = 2
	opGetattr     = 3
	opSetattr     = 4
	opOpen        = 14
	opRead        = 15
	opWrite       = 16
	opStatfs      = 17
	opRelease     = 18
	opFsync       = 20
	opFlush       = 25
	opInit        = 26
	opInterrupt   = 36
	opDestroy     = 38
	opNotifyReply = 41
	opBatchForget = 42
	opFallocate   = 43
)

const (
	inHeaderLen  = 40
	outHeaderLen = 16
	writeInLen   = 40 // as long as read_in
	initOutLen   = 64
	attrLen      = 88

	notifyRetrieve = 5
	notifyResend   = 7
)

// Capabilities, as exchanged by INIT. From bit 32 on they travel in flags2.
const (
	capAsyncRead = 1 << 0
	capBigWrites = 1 << 5
	capAsyncDIO  = 1 << 15
	capMaxPages  = 1 << 22
	capInitExt   = 1 << 30
	capResend    = 1 << 39 // kernel 6.9
)

// wantedCaps are taken where the kernel offers them; needed says without which ones fuseloop does not work.
const (
	wantedCaps = capAsyncRead | capBigWrites | capAsyncDIO | capMaxPages | capInitExt | capResend
	neededCaps = capBigWrites | capAsyncDIO | capMaxPages
)

// Answers to OPEN: no page cache for the file, and writes side by side. Kernels before 6.6 ignore the second and do one write at a time.
const openFlags = 1<<0 | 1<<6

// What FALLOCATE asks for: loop sends the first for a discard, the second for write-zeroes that must not unmap.
const (
	fallocPunchKeep = 0x3
	fallocZeroKeep  = 0x11
)

// Nodes: the root folder and the one file.
const (
	rootNode = 1
	fileNode = 2
)

// maxIO is the largest payload of a request, in bytes.
const maxIO = 1 << 20

// maxBackground is how many asynchronous requests the kernel keeps under way (its default is 12).
const maxBackground = 512

var order = binary.NativeEndian

type request struct {
	opcode uint32
	unique uint64 // bit 63 marks one that is sent again: it is echoed like the rest
	node   uint64
	body   []byte
}

// parseRequest decodes what one read from /dev/fuse returned.
func parseRequest(b []byte) (request, error) {
	if len(b) < inHeaderLen {
		return request{}, fmt.Errorf("request of %d bytes is shorter than its header", len(b))
	}
	if n := order.Uint32(b); int64(n) != int64(len(b)) {
		return request{}, fmt.Errorf("request says %d bytes and has %d", n, len(b))
	}
	return request{opcode: order.Uint32(b[4:]), unique: order.Uint64(b[8:]), node: order.Uint64(b[16:]), body: b[inHeaderLen:]}, nil
}

// transfer is the part of read_in, write_in and fallocate_in that counts.
type transfer struct {
	off, length int64
	mode        uint32 // of FALLOCATE
}

// parseTransfer decodes READ, WRITE (whose payload must be there) and FALLOCATE. ok is false where the body does not hold what it says.
func (r request) parseTransfer() (t transfer, ok bool) {
	b := r.body
	switch r.opcode {
	case opFallocate:
		if len(b) < 32 {
			return t, false
		}
		t = transfer{off: int64(order.Uint64(b[8:])), length: int64(order.Uint64(b[16:])), mode: order.Uint32(b[24:])}
	case opRead, opWrite:
		if len(b) < writeInLen {
			return t, false
		}
		t = transfer{off: int64(order.Uint64(b[8:])), length: int64(order.Uint32(b[16:]))}
		if t.length > maxIO || (r.opcode == opWrite && t.length > int64(len(b)-writeInLen)) {
			return t, false
		}
	}
	return t, t.off >= 0 && t.length >= 0
}

// charge is how many bytes of payload the request takes, to read or to write.
func (r request) charge() int64 {
	if r.opcode != opRead && r.opcode != opWrite {
		return 0
	}
	t, ok := r.parseTransfer()
	if !ok {
		return 0 // refused without touching anything
	}
	return t.length
}

// protocol is what INIT agreed on.
type protocol struct {
	Minor uint32 `json:"minor"`
	Caps  uint64 `json:"caps"`
}

// parseInit decodes INIT and chooses what is used.
func parseInit(body []byte) (protocol, error) {
	if len(body) < 16 {
		return protocol{}, fmt.Errorf("INIT of %d bytes: %w: kernel too old for protocol 7.36", len(body), attach.ErrUnavailable)
	}
	major, minor, caps := order.Uint32(body), order.Uint32(body[4:]), uint64(order.Uint32(body[12:]))
	if caps&capInitExt != 0 && len(body) >= 20 {
		caps |= uint64(order.Uint32(body[16:])) << 32
	}
	if major != 7 || caps&neededCaps != neededCaps {
		return protocol{}, fmt.Errorf("kernel speaks FUSE %d.%d with capabilities %#x: %w: %#x are needed",
			major, minor, caps, attach.ErrUnavailable, neededCaps)
	}
	return protocol{Minor: min(minor, 41), Caps: caps & wantedCaps}, nil
}

// putInit encodes the answer to INIT; out has initOutLen zero bytes.
func (p protocol) putInit(out []byte, pageSize int) {
	order.PutUint32(out[0:], 7)
	order.PutUint32(out[4:], p.Minor)
	order.PutUint32(out[8:], maxIO) // read-ahead: not used with direct I/O
	order.PutUint32(out[12:], uint32(p.Caps))
	order.PutUint16(out[16:], maxBackground)
	order.PutUint16(out[18:], maxBackground*3/4)
	order.PutUint32(out[20:], maxIO)
	order.PutUint32(out[24:], 1) // time granularity, ns
	order.PutUint16(out[28:], uint16(maxIO/pageSize))
	order.PutUint32(out[32:], uint32(p.Caps>>32))
}

// attributes are those of a node; times stay 0.
type attributes struct {
	node  uint64
	size  int64
	mode  uint32
	nlink uint32
	uid   uint32
}

func (a attributes) put(out []byte) {
	order.PutUint64(out[0:], a.node)
	order.PutUint64(out[8:], uint64(a.size))
	order.PutUint64(out[16:], uint64(a.size/512))
	order.PutUint32(out[60:], a.mode)
	order.PutUint32(out[64:], a.nlink)
	order.PutUint32(out[68:], a.uid)
	order.PutUint32(out[80:], 4096)
}

// attrTime is how long the kernel may keep names and attributes, in seconds: for good. If attributes expired, LOOP_GET_STATUS64, which asks for the
// inode's number, would hang whoever calls it (losetup, the next server's search) while nobody serves. Resize has the size fetched, see refresh.
const attrTime = 1 << 32

// setattrSize is the bit of SETATTR that asks for another size.
const setattrSize = 1 << 3

// notification encodes an unasked message; code goes where an answer has its error.
func notification(code int32, body []byte) []byte {
	b := make([]byte, outHeaderLen, outHeaderLen+len(body))
	order.PutUint32(b, uint32(outHeaderLen+len(body)))
	order.PutUint32(b[4:], uint32(code))
	return append(b, body...)
}

package keeper

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/rowan-csi/rowan/pkg/attach"
)

// Limits of the protocol.
const (
	MaxRecords = 4096
	MaxFDs     = 4
	MaxIDLen   = 256
	MaxDataLen = 8 << 10
	MaxMessage = headerLen + MaxIDLen + MaxDataLen
)

const (
	magic     = 0x504b5752 // "RWKP"
	version   = 1
	headerLen = 16
)

// Op is what a message asks for or answers.
type Op uint16

// Requests.
const (
	opPut Op = 1 + iota
	opUpdate
	opGet
	opList
	opDelete
	opHandover
	opWatch
	opWork
)

// Answers.
const (
	opDone     Op = 0x100 + iota // nothing more follows
	opRecord                     // one record
	opError                      // data is the error's text, flags its code
	opConfirm                    // sent by a successor that has everything
	opListener                   // the listening socket and the lock
)

// flagExclusive makes Put fail where the id is taken.
const flagExclusive = 1

// Errors of the keeper.
var (
	// ErrNotFound: the keeper has no record of that id.
	ErrNotFound = errors.New("keeper has no such record")
	// ErrExists: the keeper has a record of that id.
	ErrExists = errors.New("keeper has such a record already")
	// ErrFull: the keeper has MaxRecords records.
	ErrFull = errors.New("keeper is full")
	// ErrProtocol: a message that does not decode, or not one that belongs here.
	ErrProtocol = errors.New("keeper protocol violated")
	// ErrVersion: the other end speaks another version of the protocol.
	ErrVersion = errors.New("keeper speaks another version")
	// ErrPeer: the other end runs as another user.
	ErrPeer = errors.New("peer is another user")
)

// codes are the errors that cross the socket.
var codes = map[uint32]error{1: ErrNotFound, 2: ErrExists, 3: ErrFull, 4: ErrProtocol, 5: ErrVersion, 6: ErrPeer, 7: ErrHandedOver,
	8: attach.ErrInUse, 9: attach.ErrUnavailable, 10: attach.ErrInvalid, 11: attach.ErrGone}

type message struct {
	op    Op
	flags uint32
	id    string
	data  []byte
}

func (m message) encode() ([]byte, error) {
	if len(m.id) > MaxIDLen || len(m.data) > MaxDataLen {
		return nil, fmt.Errorf("encode message with id of %d and data of %d bytes: %w: at most %d and %d",
			len(m.id), len(m.data), ErrProtocol, MaxIDLen, MaxDataLen)
	}
	b := make([]byte, headerLen, headerLen+len(m.id)+len(m.data))
	binary.LittleEndian.PutUint32(b[0:], magic)
	binary.LittleEndian.PutUint16(b[4:], version)
	binary.LittleEndian.PutUint16(b[6:], uint16(m.op))
	binary.LittleEndian.PutUint32(b[8:], m.flags)
	binary.LittleEndian.PutUint16(b[12:], uint16(len(m.id)))
	binary.LittleEndian.PutUint16(b[14:], uint16(len(m.data)))
	return append(append(b, m.id...), m.data...), nil
}

func decode(b []byte) (message, error) {
	if len(b) < headerLen || binary.LittleEndian.Uint32(b) != magic {
		return message{}, fmt.Errorf("message of %d bytes without the magic: %w", len(b), ErrProtocol)
	}
	if v := binary.LittleEndian.Uint16(b[4:]); v != version {
		return message{}, fmt.Errorf("message of version %d, this is %d: %w", v, version, ErrVersion)
	}
	m := message{op: Op(binary.LittleEndian.Uint16(b[6:])), flags: binary.LittleEndian.Uint32(b[8:])}
	idLen, dataLen := int(binary.LittleEndian.Uint16(b[12:])), int(binary.LittleEndian.Uint16(b[14:]))
	if idLen > MaxIDLen || dataLen > MaxDataLen || len(b) != headerLen+idLen+dataLen {
		return message{}, fmt.Errorf("message of %d bytes says id %d and data %d: %w", len(b), idLen, dataLen, ErrProtocol)
	}
	m.id = string(b[headerLen : headerLen+idLen])
	m.data = append([]byte(nil), b[headerLen+idLen:]...)
	return m, nil
}

// errorMessage makes the answer that carries err.
func errorMessage(err error) message {
	text := err.Error()
	m := message{op: opError, data: []byte(text[:min(len(text), 1024)])}
	for code, known := range codes {
		if errors.Is(err, known) && (m.flags == 0 || code < m.flags) { // the same one every time, where several are in it
			m.flags = code
		}
	}
	return m
}

// asError gives back the error in an answer; nil if it carries none.
func (m message) asError() error {
	if m.op != opError {
		return nil
	}
	if known, ok := codes[m.flags]; ok {
		return fmt.Errorf("keeper answered %q: %w", m.data, known)
	}
	return fmt.Errorf("keeper answered %q", m.data)
}

package rpc

import (
	"context"
	"errors"
	"strings"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	pb "github.com/rowan-csi/rowan/pkg/engine/rpc/enginev1"
)

// ErrUnreachable: nobody answers on the engine's socket, or it is on its way down or up. Whether the call did its work is unknown when it was under
// way at that moment.
var ErrUnreachable = errors.New("nobody answers")

// sentinels is the one table from errors to the wire and back. Reasons are part of the protocol: never rename one. Of several that an error is, the
// first in this order chooses the code, so the specific stand before the general.
var sentinels = []struct {
	err    error
	reason string
	code   codes.Code
}{
	{engine.ErrInvalid, "INVALID", codes.InvalidArgument},
	{engine.ErrNotFound, "NOT_FOUND", codes.NotFound},
	{engine.ErrExists, "EXISTS", codes.AlreadyExists},
	{engine.ErrShrink, "SHRINK", codes.OutOfRange},
	{engine.ErrNotDescendant, "NOT_DESCENDANT", codes.FailedPrecondition},
	{engine.ErrUnrelated, "UNRELATED", codes.FailedPrecondition},
	{engine.ErrInUse, "IN_USE", codes.FailedPrecondition},
	{engine.ErrNoSpace, "NO_SPACE", codes.ResourceExhausted},
	{engine.ErrFailed, "FAILED", codes.FailedPrecondition},
	{engine.ErrLocked, "LOCKED", codes.FailedPrecondition},
	{engine.ErrLost, "LOST", codes.DataLoss},
	{engine.ErrIncompatible, "INCOMPATIBLE", codes.FailedPrecondition},
	{engine.ErrCorrupt, "CORRUPT", codes.DataLoss},
	{engine.ErrMemberMissing, "MEMBER_MISSING", codes.FailedPrecondition},
	{engine.ErrForeign, "FOREIGN", codes.FailedPrecondition},
	{engine.ErrUnsupported, "UNSUPPORTED", codes.FailedPrecondition},
	{engine.ErrNotBlank, "NOT_BLANK", codes.FailedPrecondition},
	{host.ErrNotOpen, "NOT_OPEN", codes.FailedPrecondition},
	{host.ErrStopping, "STOPPING", codes.Unavailable},
	{context.DeadlineExceeded, "DEADLINE", codes.DeadlineExceeded},
	{context.Canceled, "CANCELED", codes.Canceled},
	{engine.ErrClosed, "CLOSED", codes.Unavailable},
	{engine.ErrBusy, "BUSY", codes.Aborted},
}

// toStatus makes the error that a handler returns one that crosses the wire. An error of no sentinel is Internal.
func toStatus(err error) error {
	if err == nil {
		return nil
	}
	if _, ok := status.FromError(err); ok && !isSentinel(err) {
		return err // gRPC's own, such as a message that is too large
	}
	code, detail := codes.Internal, &pb.ErrorDetail{}
	for _, s := range sentinels {
		if !errors.Is(err, s.err) {
			continue
		}
		if len(detail.Reasons) == 0 {
			code = s.code
		}
		detail.Reasons = append(detail.Reasons, s.reason)
	}
	st := status.New(code, err.Error())
	if with, derr := st.WithDetails(detail); derr == nil {
		st = with
	}
	return st.Err()
}

func isSentinel(err error) bool {
	for _, s := range sentinels {
		if errors.Is(err, s.err) {
			return true
		}
	}
	return false
}

// remoteError is an error of the engine at the client: the server's text, and every sentinel it was there.
type remoteError struct {
	status *status.Status
	is     []error
}

func (e *remoteError) Error() string              { return e.status.Message() }
func (e *remoteError) Unwrap() []error            { return e.is }
func (e *remoteError) GRPCStatus() *status.Status { return e.status }

// fromStatus makes the engine's error out of what a call returned.
func fromStatus(socket string, err error) error {
	if err == nil {
		return nil
	}
	st, ok := status.FromError(err)
	if !ok {
		return err
	}
	for _, d := range st.Details() {
		detail, ok := d.(*pb.ErrorDetail)
		if !ok {
			continue
		}
		e := &remoteError{status: st}
		for _, reason := range detail.Reasons {
			for _, s := range sentinels {
				if s.reason == reason {
					e.is = append(e.is, s.err)
				}
			}
		}
		return e
	}
	// No detail: the error was made by gRPC, on either side.
	switch st.Code() {
	case codes.DeadlineExceeded:
		return wrapLocal(st, context.DeadlineExceeded, "wait for the engine on "+socket)
	case codes.Canceled:
		return wrapLocal(st, context.Canceled, "wait for the engine on "+socket)
	case codes.Unavailable:
		return wrapLocal(st, ErrUnreachable, "call the engine on "+socket)
	case codes.Unimplemented:
		return wrapLocal(st, errors.ErrUnsupported, "the engine on "+socket+" is older than this client")
	}
	return err
}

// wrapLocal keeps the status, so that callers who ask for a code still get it.
func wrapLocal(st *status.Status, sentinel error, doing string) error {
	p := st.Proto()
	cause := strings.TrimPrefix(st.Message(), `connection error: desc = "transport: Error while dialing: `)
	p.Message = doing + ": " + sentinel.Error() + " (" + strings.TrimSuffix(cause, `"`) + ")"
	return &remoteError{status: status.FromProto(p), is: []error{sentinel}}
}

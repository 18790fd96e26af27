package driver

import (
	"context"
	"errors"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rowan-csi/rowan/pkg/driver/mount"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// errorCodes is the one table from errors to gRPC codes. Of several that an error is, the first decides. The codes are chosen by what the callers do:
// the side-cars loop on RESOURCE_EXHAUSTED through other nodes, so it is for space alone; ABORTED, UNAVAILABLE and DEADLINE_EXCEEDED mean that the
// operation may go on, the others that it ended.
var errorCodes = []struct {
	err  error
	code codes.Code
}{
	{context.DeadlineExceeded, codes.DeadlineExceeded},
	{context.Canceled, codes.Canceled},

	{volume.ErrInvalid, codes.InvalidArgument},
	{volume.ErrOutOfRange, codes.OutOfRange},
	{volume.ErrMalformedID, codes.NotFound}, // nothing can have that handle
	{volume.ErrSourceNotFound, codes.NotFound},
	{volume.ErrNotFound, codes.NotFound},
	{volume.ErrExists, codes.AlreadyExists},
	{volume.ErrGrouped, codes.InvalidArgument},
	{volume.ErrBadToken, codes.Aborted},

	{volume.ErrPending, codes.Aborted},
	{volume.ErrInUse, codes.FailedPrecondition},
	{volume.ErrLost, codes.FailedPrecondition},
	{volume.ErrPlacement, codes.FailedPrecondition},
	{volume.ErrApart, codes.FailedPrecondition},
	{volume.ErrNoSpace, codes.ResourceExhausted},
	{volume.ErrFailed, codes.FailedPrecondition},
	{volume.ErrNodeAway, codes.FailedPrecondition}, // nothing was asked of it yet: the caller may give up and clean up
	{volume.ErrUnavailable, codes.Unavailable},

	{volume.ErrNotPublished, codes.NotFound},
	{volume.ErrNotStaged, codes.FailedPrecondition},
	{volume.ErrNotAttached, codes.FailedPrecondition},
	{volume.ErrContent, codes.FailedPrecondition},
	{volume.ErrPublished, codes.FailedPrecondition},
	{volume.ErrMismatch, codes.AlreadyExists},
	{mount.ErrDamaged, codes.DataLoss},
	{mount.ErrMounted, codes.FailedPrecondition},
}

// codeOf is the code of an error; INTERNAL if it is none of the table's.
func codeOf(err error) codes.Code {
	if err == nil {
		return codes.OK
	}
	for _, e := range errorCodes {
		if errors.Is(err, e.err) {
			return e.code
		}
	}
	if s, ok := status.FromError(err); ok { // gRPC's own, such as UNIMPLEMENTED
		return s.Code()
	}
	return codes.Internal
}

// withCodes gives every error that leaves the server its code.
func withCodes(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
	resp, err := handler(ctx, req)
	if err != nil {
		return nil, status.Error(codeOf(err), text(err))
	}
	return resp, nil
}

func text(err error) string {
	if s, ok := status.FromError(err); ok && codeOf(err) == s.Code() {
		return s.Message()
	}
	return err.Error()
}

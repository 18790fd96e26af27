package driver

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rowan-csi/rowan/pkg/driver/mount"
	"github.com/rowan-csi/rowan/pkg/volume"
)

func TestErrorCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		code codes.Code
	}{
		{nil, codes.OK},
		{errors.New("anything else"), codes.Internal},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{volume.ErrInvalid, codes.InvalidArgument},
		{volume.ErrOutOfRange, codes.OutOfRange},
		{volume.ErrMalformedID, codes.NotFound},
		{volume.ErrNotFound, codes.NotFound},
		{volume.ErrSourceNotFound, codes.NotFound},
		{volume.ErrExists, codes.AlreadyExists},
		{volume.ErrGrouped, codes.InvalidArgument},
		{volume.ErrBadToken, codes.Aborted},
		{volume.ErrInUse, codes.FailedPrecondition},
		{volume.ErrPending, codes.Aborted},
		{volume.ErrNotAttached, codes.FailedPrecondition},
		{volume.ErrLost, codes.FailedPrecondition},
		{volume.ErrPlacement, codes.FailedPrecondition},
		{volume.ErrApart, codes.FailedPrecondition},
		{volume.ErrNoSpace, codes.ResourceExhausted},
		{volume.ErrFailed, codes.FailedPrecondition},
		{volume.ErrNodeAway, codes.FailedPrecondition},
		{volume.ErrUnavailable, codes.Unavailable},
		{volume.ErrNotStaged, codes.FailedPrecondition},
		{volume.ErrNotPublished, codes.NotFound},
		{volume.ErrContent, codes.FailedPrecondition},
		{volume.ErrPublished, codes.FailedPrecondition},
		{volume.ErrMismatch, codes.AlreadyExists},
		{mount.ErrDamaged, codes.DataLoss},
		{mount.ErrMounted, codes.FailedPrecondition},
		{fmt.Errorf("list: %w (%w)", volume.ErrBadToken, volume.ErrMalformedID), codes.NotFound},
		{fmt.Errorf("create: %w: %w", context.DeadlineExceeded, volume.ErrUnavailable), codes.DeadlineExceeded},
		{status.Error(codes.Unimplemented, "x"), codes.Unimplemented},
	} {
		wrapped := c.err
		if c.err != nil {
			wrapped = fmt.Errorf("do it: %w", c.err)
		}
		_, err := withCodes(t.Context(), nil, &grpc.UnaryServerInfo{}, func(context.Context, any) (any, error) { return nil, wrapped })
		if status.Code(err) != c.code {
			t.Errorf("%v: %v, want %v", c.err, err, c.code)
		}
		if c.err != nil && status.Convert(err).Message() != wrapped.Error() {
			t.Errorf("text became %q, was %q", status.Convert(err).Message(), wrapped)
		}
	}
}

// TestEverySentinelHasACode reads the domain's source, so that a new error cannot be forgotten.
func TestEverySentinelHasACode(t *testing.T) {
	file, err := parser.ParseFile(token.NewFileSet(), "../volume/errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var declared int
	ast.Inspect(file, func(n ast.Node) bool {
		if spec, ok := n.(*ast.ValueSpec); ok {
			declared += len(spec.Names)
		}
		return true
	})
	var listed []error
	for _, e := range errorCodes {
		if !slices.Contains(listed, e.err) {
			listed = append(listed, e.err)
		}
	}
	const others = 4 // two of context, two of mount
	if len(listed) != declared+others || len(listed) != len(errorCodes) {
		t.Errorf("%d errors in the table, %d of them different, and %d in package volume and %d others", len(errorCodes), len(listed), declared, others)
	}
}

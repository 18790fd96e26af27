package reason_test

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/reason"
)

func TestTable(t *testing.T) {
	for _, c := range []struct {
		err    error
		reason v1alpha1.ErrorReason
		final  bool
	}{
		{volume.ErrInvalid, "InvalidArgument", true},
		{volume.ErrOutOfRange, "OutOfRange", true},
		{volume.ErrSourceNotFound, "SourceNotFound", true},
		{volume.ErrExists, "AlreadyExists", true},
		{volume.ErrPlacement, "WrongNode", true},
		{volume.ErrNoSpace, "NoSpace", true},
		{volume.ErrLost, "Lost", true},
		{volume.ErrNotFound, "NotFound", false},
		{volume.ErrInUse, "InUse", false},
		{volume.ErrPending, "Busy", false},
		{volume.ErrFailed, "PoolFailed", false},
		{volume.ErrUnavailable, "EngineUnavailable", false},
		{reason.ErrInternal, "InternalError", false},
	} {
		err := fmt.Errorf("volume x: %w: do this", c.err)
		if got := reason.Of(err); got != c.reason {
			t.Errorf("%v: reason %s, want %s", err, got, c.reason)
		}
		if got := reason.Err(c.reason, err.Error()); !errors.Is(got, c.err) || got.Error() != err.Error() {
			t.Errorf("%s: %v, want %v", c.reason, got, err)
		}
		if got := reason.Final(c.reason); got != c.final {
			t.Errorf("%s: final %t, want %t", c.reason, got, c.final)
		}
	}
}

func TestOutsideTheTable(t *testing.T) {
	if got := reason.Of(errors.New("surprise")); got != v1alpha1.ReasonInternal {
		t.Errorf("an unknown error: %s", got)
	}
	if got := reason.Of(fmt.Errorf("%w (%w)", volume.ErrSourceNotFound, volume.ErrNotFound)); got != v1alpha1.ReasonSourceNotFound {
		t.Errorf("a source that is not found: %s", got)
	}
	for _, err := range []error{context.DeadlineExceeded, context.Canceled} {
		if got := reason.Of(err); got != v1alpha1.ReasonUnavailable {
			t.Errorf("%v: %s", err, got)
		}
	}
	if err := reason.Err("FromTheFuture", "wait"); reason.Final("FromTheFuture") || !errors.Is(err, reason.ErrInternal) || err.Error() != "wait" {
		t.Errorf("an unknown reason: final, or %v", err)
	}
	if err := reason.Err(v1alpha1.ReasonNoSpace, ""); err.Error() != volume.ErrNoSpace.Error() {
		t.Errorf("without a message: %v", err)
	}
}

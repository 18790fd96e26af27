// Package reason has the one table between the reasons of conditions and the errors of package volume, used by both sides: the agent writes a
// condition with Of, rowan-driver --controller reads it with Err.
//
// Contract: Err(Of(err), err.Error()) is the error that err is, with its text. Errors that the table lacks are InternalError. Reasons that the table
// lacks (of a newer agent) are tried again and never taken for final: whoever reads one knows nothing of what was done.
package reason

import (
	"context"
	"errors"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// table is read from the top: the first error that an error is decides. final says that nothing was made and that the same spec is not tried again.
var table = []struct {
	err    error
	reason v1alpha1.ErrorReason
	final  bool
}{
	{volume.ErrInvalid, v1alpha1.ReasonInvalid, true},
	{volume.ErrOutOfRange, v1alpha1.ReasonOutOfRange, true},
	{volume.ErrSourceNotFound, v1alpha1.ReasonSourceNotFound, true},
	{volume.ErrExists, v1alpha1.ReasonExists, true},
	{volume.ErrPlacement, v1alpha1.ReasonPlacement, true},
	{volume.ErrNoSpace, v1alpha1.ReasonNoSpace, true},
	{volume.ErrLost, v1alpha1.ReasonLost, true}, // of what was asked of a lost volume

	{volume.ErrNotFound, v1alpha1.ReasonNotFound, false},
	{volume.ErrInUse, v1alpha1.ReasonInUse, false},
	{volume.ErrPending, v1alpha1.ReasonBusy, false},
	{volume.ErrFailed, v1alpha1.ReasonPoolFailed, false},
	{volume.ErrUnavailable, v1alpha1.ReasonUnavailable, false},
	{context.DeadlineExceeded, v1alpha1.ReasonUnavailable, false}, // the engine did not answer the agent in time
	{context.Canceled, v1alpha1.ReasonUnavailable, false},
}

// ErrInternal is what a reason stands for that the table lacks.
var ErrInternal = errors.New("internal error")

// Of is the reason that stands for an error.
func Of(err error) v1alpha1.ErrorReason {
	for _, e := range table {
		if errors.Is(err, e.err) {
			return e.reason
		}
	}
	return v1alpha1.ReasonInternal
}

// Err is the error that a condition's reason stands for; message is its text.
func Err(reason v1alpha1.ErrorReason, message string) error {
	for _, e := range table {
		if e.reason == reason {
			return &stated{is: e.err, text: message}
		}
	}
	return &stated{is: ErrInternal, text: message}
}

// Final says whether nothing was made for this reason, and the same spec will not be tried again.
func Final(reason v1alpha1.ErrorReason) bool {
	for _, e := range table {
		if e.reason == reason {
			return e.final
		}
	}
	return false
}

// stated is an error that a condition told of: the text is what the node said, which names the thing and says what to do.
type stated struct {
	is   error
	text string
}

func (s *stated) Error() string {
	if s.text == "" {
		return s.is.Error()
	}
	return s.text
}

func (s *stated) Unwrap() error { return s.is }

package cluster_test

import (
	"context"
	"errors"
	"testing"

	"github.com/rowan-csi/rowan/pkg/volume"
)

// TestDeleteJustDetached: the node has answered to the unstaging and says a moment later that the volume is not attached. A deletion that comes in between is
// carried out; one of a volume that stays attached is refused, and then nothing was written.
func TestDeleteJustDetached(t *testing.T) {
	f := newFixture(t, nil)
	v := f.must("v")
	if _, err := f.agent.Attach(t.Context(), v.ID, false); err != nil {
		t.Fatal(err)
	}
	said := f.volume(v.ID).DeepCopy() // attached, as the node last said
	if err := f.agent.Service.Detach(t.Context(), v.ID); err != nil {
		t.Fatal(err)
	}
	deleted := make(chan error, 1)
	go func() { deleted <- f.Delete(context.Background(), v.ID) }()
	if f.volume(v.ID).Spec.DesiredState != said.Spec.DesiredState {
		t.Error("a key was written while the volume was said to be attached")
	}
	if err := f.agent.Detach(t.Context(), v.ID); err != nil && !errors.Is(err, volume.ErrNotFound) {
		t.Fatal(err)
	}
	if err := <-deleted; err != nil {
		t.Errorf("delete: %v", err)
	}
	if left := f.api.names(t); len(left) != 0 {
		t.Errorf("left %v", left)
	}
}

package agent

import (
	"context"
	"errors"
	"fmt"

	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

// Node is the volume service of the CSI node calls: this node's engine, asked only for what its objects stand for. A volume that was made once and is
// not there, or is another object's, is never shown.
type Node struct {
	volume.Node // the engine's
	agent       *Agent
	labels      func(ctx context.Context, id volume.VolumeID) (map[string]string, error)
}

var _ volume.Node = (*Node)(nil)

// Node makes the service.
func (a *Agent) Node() *Node {
	s := local.New(a.engine, local.Config{})
	return &Node{Node: s, agent: a, labels: s.Labels}
}

// NodeID implements volume.Node: the identity, "" while it was never found out.
func (n *Node) NodeID() volume.NodeID { return volume.NodeID(n.agent.Known()) }

// Attach implements volume.Node.
func (n *Node) Attach(ctx context.Context, id volume.VolumeID, readOnly bool) (string, error) {
	v, err := n.object(ctx, id)
	if err != nil {
		return "", err
	}
	if v != nil {
		if err := n.check(ctx, id, v); err != nil {
			return "", err
		}
		defer n.agent.lookAt(ctx, v) // also where it is held: perhaps by what was given up
	} else if err := n.letGo(ctx, id); err != nil {
		return "", err
	}
	return n.Node.Attach(ctx, id, readOnly)
}

// letGo ends the hold of an orphan: with its object the rollback is gone that it was held for.
func (n *Node) letGo(ctx context.Context, id volume.VolumeID) error {
	v, err := n.Get(ctx, id)
	if err != nil {
		return err
	}
	info, err := n.agent.engine.Volume(ctx, v.Pool, id.String())
	if by := info.Hold().By; err == nil && by != "" {
		_, err = n.agent.engine.ReleaseVolume(ctx, v.Pool, id.String(), by)
	}
	return local.Translate(err)
}

// Detach implements volume.Node. Whatever became of the object, what is attached may be detached.
func (n *Node) Detach(ctx context.Context, id volume.VolumeID) error {
	if v, err := n.object(ctx, id); err == nil && v != nil {
		defer n.agent.lookAt(ctx, v)
	}
	return n.Node.Detach(ctx, id)
}

// object is the volume's; nil if there is none any more: a volume whose object was deleted by force is an orphan, and goes on being used.
func (n *Node) object(ctx context.Context, id volume.VolumeID) (*v1alpha1.LocalVolume, error) {
	v := &v1alpha1.LocalVolume{}
	err := n.agent.client.Get(ctx, client.ObjectKey{Name: id.String()}, v)
	if client.IgnoreNotFound(err) != nil {
		return nil, fmt.Errorf("look up volume %s: %w: %w", id, volume.ErrUnavailable, err)
	}
	if err == nil && v.Spec.NodeName == n.agent.cfg.Node {
		return v, nil
	}
	// The cache has this node's only, and may be old.
	err = n.agent.reader.Get(ctx, client.ObjectKey{Name: id.String()}, v)
	switch {
	case client.IgnoreNotFound(err) != nil:
		return nil, fmt.Errorf("look up volume %s: %w: %w", id, volume.ErrUnavailable, err)
	case err != nil:
		return nil, nil
	case v.Spec.NodeName != n.agent.cfg.Node:
		return nil, fmt.Errorf("volume %s: %w: it is on node %s", id, volume.ErrPlacement, v.Spec.NodeName)
	}
	return v, nil
}

// check says why a volume must not be shown.
func (n *Node) check(ctx context.Context, id volume.VolumeID, v *v1alpha1.LocalVolume) error {
	if v.Spec.DesiredState == v1alpha1.Absent {
		return fmt.Errorf("volume %s: %w: its deletion was asked for", id, volume.ErrNotFound)
	}
	_, err := n.agent.openPool(ctx, v.Spec.Location)
	if err != nil && !errors.Is(err, errPoolAway) {
		return fmt.Errorf("volume %s: %w", id, err)
	}
	var labels map[string]string
	if err == nil {
		labels, err = n.labels(ctx, id)
	}
	switch {
	case err == nil && local.OwnerOf(labels) == string(v.UID):
		return nil
	case err == nil:
		return fmt.Errorf("volume %s: %w: pool %s has another volume under its name, which was made for object %q", id, volume.ErrLost, v.Spec.Pool,
			local.OwnerOf(labels))
	case !errors.Is(err, volume.ErrNotFound) && !errors.Is(err, errPoolAway):
		return err
	case is(v, v1alpha1.Created):
		return fmt.Errorf("volume %s: %w: pool %s (%s) has it no more; it is not made again, blank: bring the pool's disks back, or restore it from a backup (%w)",
			id, volume.ErrLost, v.Spec.Pool, v.Spec.PoolUUID, err)
	}
	return fmt.Errorf("volume %s: %w: it is not made yet", id, volume.ErrUnavailable)
}

package agent

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// identity is the node's: the topology value of the volumes in its pools. It is on the pools' members and goes where they go; the file is what this
// machine answers with while it cannot ask, which it must before anything else runs.
type identity struct {
	file string

	mu    sync.Mutex
	value string // "" while it was never found out
	// alone are this node's pools, by UID, when the API server said last that value is no other node's; nil: never. Disks that serve elsewhere went with a
	// Pool that was here, so while these are the same it need not be asked again: all pools' list is long where there are many nodes.
	alone []types.UID
}

func loadIdentity(file string) (*identity, error) {
	text, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read the node's identity: %w", err)
	}
	return &identity{file: file, value: strings.TrimSpace(string(text))}, nil
}

// Known is the identity, "" while it was never found out.
func (a *Agent) Known() string {
	a.identity.mu.Lock()
	defer a.identity.mu.Unlock()
	return a.identity.value
}

// Identity finds the identity out where it is not known, or went elsewhere with its disks: a pool's that stands for this node already, or the node's name.
// It is asked again and again, for disks come and go while the agent runs.
func (a *Agent) Identity(ctx context.Context) (string, error) {
	a.identity.mu.Lock()
	defer a.identity.mu.Unlock()
	var ps v1alpha1.PoolList
	if err := a.client.List(ctx, &ps); err != nil {
		return "", fmt.Errorf("find the node's identity: %w", err)
	}
	if value := a.identity.value; value != "" {
		if slices.ContainsFunc(ps.Items, func(p v1alpha1.Pool) bool { return p.Status.Identity == value && !poolGone(&p) }) {
			return value, nil
		}
		mine := uids(ps.Items)
		if a.identity.alone != nil && slices.Equal(a.identity.alone, mine) {
			return value, nil
		}
		elsewhere, err := a.servedElsewhere(ctx, value)
		if err != nil {
			return "", err
		}
		if !elsewhere {
			a.identity.alone = mine
			return value, nil
		}
	}
	for _, p := range ps.Items {
		if p.Status.Identity != "" && !poolGone(&p) {
			return p.Status.Identity, a.identity.set(p.Status.Identity)
		}
	}
	name, err := a.unusedIdentity(ctx)
	if err != nil {
		return "", err
	}
	return name, a.identity.set(name)
}

// uids are those of pools, in order; never nil.
func uids(ps []v1alpha1.Pool) []types.UID {
	list := make([]types.UID, 0, len(ps))
	for _, p := range ps {
		list = append(list, p.UID)
	}
	slices.Sort(list)
	return list
}

// unusedIdentity is the node's name, or, where the disks of an earlier node of that name serve elsewhere, one that nobody has.
func (a *Agent) unusedIdentity(ctx context.Context) (string, error) {
	name := labelValue(a.cfg.Node)
	elsewhere, err := a.servedElsewhere(ctx, name)
	if err != nil || !elsewhere {
		return name, err
	}
	me := &corev1.Node{}
	if err := a.reader.Get(ctx, client.ObjectKey{Name: a.cfg.Node}, me); err != nil {
		return "", fmt.Errorf("read this node: %w", err)
	}
	return labelValue(a.cfg.Node + "-" + string(me.UID)), nil
}

// servedElsewhere says whether a pool with an identity is another node's. It is asked of the API server: the cache has this node's objects only.
func (a *Agent) servedElsewhere(ctx context.Context, identity string) (bool, error) {
	var all v1alpha1.PoolList
	if err := a.reader.List(ctx, &all); err != nil {
		return false, fmt.Errorf("look for another node with identity %s: %w", identity, err)
	}
	return slices.ContainsFunc(all.Items, func(p v1alpha1.Pool) bool {
		return p.Spec.NodeName != a.cfg.Node && p.Status.Identity == identity
	}), nil
}

// poolGone: its disk is not here any more, and stands for no node.
func poolGone(p *v1alpha1.Pool) bool {
	c := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.Ready)
	return c != nil && c.Status == metav1.ConditionFalse && c.Reason == v1alpha1.ReasonPoolGone
}

// labelValue makes a text one that a label may have, itself where it can be.
func labelValue(s string) string {
	if len(validation.IsValidLabelValue(s)) == 0 {
		return s
	}
	sum := sha256.Sum256([]byte(s))
	hash := hex.EncodeToString(sum[:8])
	return strings.TrimRight(s[:min(len(s), validation.LabelValueMaxLength-1-len(hash))], "-_.") + "-" + hash
}

// set remembers the identity, durably. mu is held.
func (i *identity) set(value string) error {
	temp, err := os.CreateTemp(filepath.Dir(i.file), filepath.Base(i.file)+".*")
	if err != nil {
		return fmt.Errorf("remember the node's identity: %w", err)
	}
	_, err = temp.WriteString(value + "\n")
	err = errors.Join(err, temp.Sync(), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), i.file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("remember the node's identity: %w", err), os.Remove(temp.Name()))
	}
	i.value, i.alone = value, nil
	return nil
}

// settle takes a pool's identity for the node's: of disks that were moved here, the volumes are looked for where it is. Disks of two nodes cannot be served
// by one.
func (a *Agent) settle(ctx context.Context, p *v1alpha1.Pool, found string) error {
	if found == "" || found == a.Known() {
		return nil
	}
	var ps v1alpha1.PoolList
	if err := a.client.List(ctx, &ps); err != nil {
		return fmt.Errorf("find the node's identity: %w", err)
	}
	a.identity.mu.Lock()
	defer a.identity.mu.Unlock()
	for _, other := range ps.Items {
		if other.Name != p.Name && other.Status.Identity != "" && other.Status.Identity == a.identity.value && !poolGone(&other) {
			return fmt.Errorf("%w: its volumes are looked for on node %s, and this node is %s by pool %s: a node serves the disks of one node only; "+
				"move them to a node without pools", volume.ErrPlacement, found, a.identity.value, other.Name)
		}
	}
	defer a.lookAtNode()
	return a.identity.set(found)
}

// labelNode corrects the topology label that the kubelet made of an earlier identity. The kubelet itself never changes one, and refuses a plugin whose
// topology is not what the label says.
func (a *Agent) labelNode(ctx context.Context, n *corev1.Node, value string) error {
	if have, ok := n.Labels[v1alpha1.TopologyKey]; !ok || value == "" || have == value {
		return nil
	}
	old := n.DeepCopy()
	n.Labels[v1alpha1.TopologyKey] = value
	if err := a.client.Patch(ctx, n, client.MergeFrom(old)); err != nil {
		return fmt.Errorf("correct the node's label %s: %w", v1alpha1.TopologyKey, err)
	}
	return nil
}

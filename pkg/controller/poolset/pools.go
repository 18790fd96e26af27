package poolset

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
)

// maxName is how long a Pool's name may be.
const maxName = 63

// nameOf is the name of a set's pool on a node: SET-NODE where that is short enough and not taken.
func nameOf(set, node string) (string, bool) {
	name := set + "-" + node
	return name, len(name) <= maxName
}

// hashedName is the other name: for long ones, for SET-NODE that is another's ("a-b" on "c", "a" on "b-c"), and for a node that came back under the
// name of one whose pool moved away. The Node's UID makes the last one different.
func hashedName(set, node, uid string) string {
	sum := sha256.Sum256([]byte(set + "/" + node + "/" + uid))
	hash := hex.EncodeToString(sum[:4])
	plain, _ := nameOf(set, node)
	if most := maxName - 1 - len(hash); len(plain) > most {
		plain = strings.TrimRight(plain[:most], "-.")
	}
	return plain + "-" + hash
}

// errNameTaken says that both names are others'.
var errNameTaken = errors.New("another Pool has its name")

// make the set's pool on a node, or find the one that was made a moment ago.
func (c *Controller) make(ctx context.Context, set *v1alpha1.PoolSet, node metav1.PartialObjectMetadata) (*v1alpha1.Pool, error) {
	pool := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Finalizers: []string{v1alpha1.Finalizer}},
		Spec: v1alpha1.PoolSpec{
			NodeName: node.Name, NodeUID: string(node.UID), PoolSet: set.Name, PoolTemplate: *set.Spec.Template.DeepCopy(), DesiredState: v1alpha1.Present,
		},
	}
	names := []string{hashedName(set.Name, node.Name, string(node.UID))}
	if plain, ok := nameOf(set.Name, node.Name); ok {
		names = append([]string{plain}, names...)
	}
	for _, name := range names {
		wanted := pool.DeepCopy()
		wanted.Name = name
		err := c.Client.Create(ctx, wanted)
		if err == nil {
			c.Events.Eventf(set, wanted, corev1.EventTypeNormal, "PoolMade", "Create", "pool %s is to be made on node %s", name, node.Name)
			return wanted, nil
		}
		if !apierrors.IsAlreadyExists(err) {
			return nil, fmt.Errorf("create pool %s on node %s: %w", name, node.Name, err)
		}
		var there v1alpha1.Pool // the cache does not have it yet, or it is another's
		if err := c.Live.Get(ctx, client.ObjectKey{Name: name}, &there); err != nil {
			return nil, fmt.Errorf("get pool %s: %w", name, err)
		}
		if there.Spec.PoolSet == set.Name && there.Spec.NodeName == node.Name {
			return &there, nil
		}
	}
	return nil, fmt.Errorf("create pool of PoolSet %s on node %s: %w: %s", set.Name, node.Name, errNameTaken, strings.Join(names, ", "))
}

// carryTemplate gives the set's pools what of its template can be changed. It returns what cannot, in words.
func (c *Controller) carryTemplate(ctx context.Context, set *v1alpha1.PoolSet, w *world) ([]string, error) {
	var differences []string
	template := set.Spec.Template
	for _, pools := range w.pools {
		for _, p := range pools {
			if p.Spec.DesiredState == v1alpha1.Absent || p.DeletionTimestamp != nil {
				continue
			}
			differs := difference(p.Spec.PoolTemplate, template)
			if differs != "" {
				differences = append(differences, fmt.Sprintf("pool %s: %s", p.Name, differs))
			}
			if _, err := c.Patch(ctx, p, func() {
				p.Spec.OvercommitPercent = template.OvercommitPercent
				if differs == "" {
					for _, m := range template.Members[len(p.Spec.Members):] {
						p.Spec.Members = append(p.Spec.Members, *m.DeepCopy())
					}
				}
			}); err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(differences) // a map gave their order, and the status must not change with it
	return differences, nil
}

// difference says in which way a pool's template is another than its set's, other than in what can be changed; "" if in none.
func difference(pool, set v1alpha1.PoolTemplate) string {
	if pool.Allocation != set.Allocation {
		return fmt.Sprintf("its allocation is %s and stays so; template.allocation is %s", pool.Allocation, set.Allocation)
	}
	for i, m := range pool.Members {
		switch {
		case i >= len(set.Members):
			return fmt.Sprintf("it has member %s, which template.members has no more: remove it with rowanctl pool member remove", path(m))
		case path(m) != path(set.Members[i]):
			return fmt.Sprintf("its member %d is %s, and template.members[%d] is %s: members can be added at the end only", i, path(m), i,
				path(set.Members[i]))
		case !equality.Semantic.DeepEqual(m, set.Members[i]):
			return fmt.Sprintf("its member %s was made with other settings than template.members[%d] has now: they count when a member is made, "+
				"rowanctl pool grow changes its size", path(m), i)
		}
	}
	return ""
}

func path(m v1alpha1.Member) string {
	switch {
	case m.Directory != nil:
		return m.Directory.Path
	case m.Device != nil:
		return m.Device.Path
	}
	return ""
}

// giveUp the pools that are not wanted any more and hold nothing. It returns after which time to look again.
func (c *Controller) giveUp(ctx context.Context, w *world) (time.Duration, error) {
	again := time.Duration(0)
	for node, pools := range w.pools {
		there, selected := w.selected(node)
		for _, p := range pools {
			if !there { // lost nodes are another matter: their pools may return
				continue
			}
			wait, err := c.markUnselected(ctx, p, selected)
			if err != nil {
				return 0, err
			}
			again = soonest(again, wait)
			if replaced(p, pools) || !selected && wait == 0 {
				if err := c.setAbsent(ctx, p); err != nil {
					return 0, err
				}
			}
			if err := c.deleteGone(ctx, p); err != nil {
				return 0, err
			}
		}
	}
	return again, nil
}

// replaced says whether a pool was never made, and another one of the set has come to its node: one whose disks were moved there.
func replaced(p *v1alpha1.Pool, pools []*v1alpha1.Pool) bool {
	return p.Status.UUID == "" && slices.ContainsFunc(pools, func(o *v1alpha1.Pool) bool {
		return o.Status.UUID != "" && o.Spec.DesiredState != v1alpha1.Absent
	})
}

// markUnselected keeps the condition Unselected, which is the clock, too. It returns how long is still to be waited.
func (c *Controller) markUnselected(ctx context.Context, p *v1alpha1.Pool, selected bool) (time.Duration, error) {
	if selected {
		return 0, c.PatchStatus(ctx, p, func() { meta.RemoveStatusCondition(&p.Status.Conditions, v1alpha1.Unselected) })
	}
	if was := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.Unselected); was == nil || was.Status != metav1.ConditionTrue {
		text := fmt.Sprintf("PoolSet %s does not choose node %s any more; the pool is given up once it holds nothing", p.Spec.PoolSet, p.Spec.NodeName)
		if err := c.PatchStatus(ctx, p, func() {
			c.SetCondition(p, &p.Status.Status, v1alpha1.Unselected, metav1.ConditionTrue, v1alpha1.Unselected, text)
		}); err != nil {
			return 0, err
		}
		c.Events.Eventf(p, nil, corev1.EventTypeWarning, v1alpha1.Unselected, "Keep", "%s", text)
	}
	since := c.Clock.Now()
	if cond := meta.FindStatusCondition(p.Status.Conditions, v1alpha1.Unselected); cond != nil {
		since = cond.LastTransitionTime.Time
	}
	return max(0, c.UnselectedAfter-c.Clock.Since(since)), nil
}

// setAbsent writes the first key, if the pool holds nothing. The engine is asked again by the agent, so a volume that is made meanwhile keeps its
// pool.
func (c *Controller) setAbsent(ctx context.Context, p *v1alpha1.Pool) error {
	if p.Spec.DesiredState == v1alpha1.Absent {
		return nil
	}
	var live v1alpha1.Pool
	if err := c.Live.Get(ctx, client.ObjectKeyFromObject(p), &live); err != nil {
		return client.IgnoreNotFound(err)
	}
	if live.UID != p.UID || live.Spec.NodeName != p.Spec.NodeName || live.Status.UUID != p.Status.UUID { // the cache is old: it comes again
		return nil
	}
	empty, err := c.empty(ctx, &live)
	if err != nil || !empty {
		return err
	}
	there, err := c.Patch(ctx, &live, func() { live.Spec.DesiredState = v1alpha1.Absent })
	if err == nil && there {
		c.Events.Eventf(&live, nil, corev1.EventTypeNormal, "GivenUp", "Remove", "the pool on node %s holds nothing and is not wanted any more",
			live.Spec.NodeName)
		live.DeepCopyInto(p)
	}
	return err
}

// empty says whether nothing is in the pool: no object names it, and the agent found no orphan.
func (c *Controller) empty(ctx context.Context, p *v1alpha1.Pool) (bool, error) {
	if len(p.Status.Orphans) > 0 {
		return false, nil
	}
	for _, k := range kit.Kinds {
		if k.Name != "LocalVolume" && k.Name != "LocalSnapshot" { // a group without its snapshots has no blocks
			continue
		}
		objects, err := kit.Objects(ctx, c.Live, k, client.MatchingFields{kit.FieldPool: p.Name}, client.Limit(1))
		if err != nil || len(objects) > 0 {
			return false, err
		}
	}
	return true, nil
}

// deleteGone writes the second key, when the agent has said that nothing is left.
func (c *Controller) deleteGone(ctx context.Context, p *v1alpha1.Pool) error {
	if p.Spec.DesiredState != v1alpha1.Absent || p.DeletionTimestamp != nil || !meta.IsStatusConditionTrue(p.Status.Conditions, v1alpha1.Deleted) {
		return nil
	}
	if err := c.Client.Delete(ctx, p, client.Preconditions{UID: &p.UID}); client.IgnoreNotFound(err) != nil {
		return fmt.Errorf("delete pool %s: %w", p.Name, err)
	}
	return nil
}

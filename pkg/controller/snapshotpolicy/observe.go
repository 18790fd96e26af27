package snapshotpolicy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/retention"
)

// beingCreated is the side-car's annotation of a VolumeSnapshotContent whose snapshot may be in the making.
const beingCreated = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"

// observed is a snapshot of the policy's, of either kind, as it was seen.
type observed struct {
	obj   client.Object // *VolumeSnapshot, or a VolumeGroupSnapshot as it is without types
	facts retention.Facts
	claim string             // of a VolumeSnapshot
	value string             // of a group: its label's value
	label string             // and the label's name
	parts []client.ObjectKey // and its members
	runs  map[string]time.Time
	sick  error // its annotation cannot be read
}

func (o *observed) key() string {
	return retention.FactsKey(o.facts.Namespace, o.facts.Name, o.facts.IsGroup)
}

// observe the policy's snapshots. Those that this process made and that the cache does not show yet are among them.
func (ps *pass) observe(ctx context.Context) error {
	uses, err := ps.uses(ctx)
	if err != nil {
		return err
	}
	if err := ps.observeVolumes(ctx, uses); err != nil {
		return err
	}
	if err := ps.observeGroups(ctx, uses); err != nil {
		return err
	}
	seen := make(map[string]bool, len(ps.observed))
	for _, o := range ps.observed {
		seen[o.key()] = true
	}
	for key, u := range ps.mem.unseen {
		if seen[key] || ps.lost(ctx, u) {
			delete(ps.mem.unseen, key)
			continue
		}
		ps.observed = append(ps.observed, u.observed)
	}
	there := map[types.UID]bool{}
	for _, o := range ps.observed {
		if uid := o.obj.GetUID(); ps.mem.deleted[uid] {
			there[uid], o.facts.Deleting = true, true
		}
	}
	ps.mem.deleted = there // the rest is gone
	ps.convert()
	return nil
}

// lost says that a snapshot which was made, and is not in the cache for long, is not there.
func (ps *pass) lost(ctx context.Context, u *unseen) bool {
	if d := ps.now.Sub(u.at); d < lookAtUnseen && d > -lookAtUnseen {
		return false
	}
	u.at = ps.now
	o := u.obj.DeepCopyObject().(client.Object)
	err := ps.c.Live.Get(ctx, client.ObjectKeyFromObject(u.obj), o)
	return client.IgnoreNotFound(err) == nil && (err != nil || o.GetUID() != u.obj.GetUID())
}

// lookAtUnseen is after which time it is asked for a snapshot that the cache does not show.
const lookAtUnseen = 30 * time.Second

func (ps *pass) observeVolumes(ctx context.Context, uses map[string][]string) error {
	keys := []string{byUID(ps.p.uid())}
	if ps.p.adopts() {
		keys = append(keys, byName(ps.p.annotation()))
	}
	found := map[types.UID]bool{}
	for _, key := range keys {
		options := []client.ListOption{client.MatchingFields{fieldPolicy: key}, noCopies}
		if !ps.p.cluster() {
			options = append(options, client.InNamespace(ps.p.obj.GetNamespace()))
		}
		var list snapshotv1.VolumeSnapshotList
		if err := ps.c.Client.List(ctx, &list, options...); err != nil {
			return fmt.Errorf("list VolumeSnapshots: %w", err)
		}
		for i := range list.Items {
			s := &list.Items[i]
			if len(keys) > 1 && found[s.UID] {
				continue
			}
			found[s.UID] = true
			o, err := ps.volumeSnapshot(ctx, s, uses)
			if err != nil {
				return err
			}
			ps.observed = append(ps.observed, o)
		}
	}
	return nil
}

// groupsOf a VolumeSnapshot that own it.
func groupsOf(s *snapshotv1.VolumeSnapshot) []string {
	var groups []string
	for _, owner := range s.OwnerReferences {
		if owner.Kind == kindGroup {
			groups = append(groups, owner.Name)
		}
	}
	if s.Status != nil && s.Status.VolumeGroupSnapshotName != nil && len(groups) == 0 && *s.Status.VolumeGroupSnapshotName != "" {
		groups = append(groups, *s.Status.VolumeGroupSnapshotName)
	}
	return groups
}

// volumeSnapshot as facts.
func (ps *pass) volumeSnapshot(ctx context.Context, s *snapshotv1.VolumeSnapshot, uses map[string][]string) (*observed, error) {
	o := &observed{obj: s, facts: factsOf(s)}
	f := &o.facts
	f.Groups, f.UsedBy = groupsOf(s), uses[s.Namespace+"/"+s.Name]
	if c := s.Spec.Source.PersistentVolumeClaimName; c != nil {
		o.claim = *c
	}
	f.Source = s.Namespace + "/" + o.claim
	st := s.Status
	if st == nil {
		return o, nil
	}
	f.Ready = st.ReadyToUse != nil && *st.ReadyToUse
	if st.CreationTime != nil {
		f.CutAt = st.CreationTime.Time
	}
	if st.Error != nil {
		message := ""
		if st.Error.Message != nil {
			message = *st.Error.Message
		}
		f.Error = &message
	}
	if !f.Ready && st.BoundVolumeSnapshotContentName != nil {
		var content snapshotv1.VolumeSnapshotContent
		err := ps.c.Client.Get(ctx, client.ObjectKey{Name: *st.BoundVolumeSnapshotContentName}, &content, noCopies)
		if client.IgnoreNotFound(err) != nil {
			return nil, fmt.Errorf("get VolumeSnapshotContent: %w", err)
		}
		_, f.Making = content.Annotations[beingCreated]
	}
	return o, nil
}

func factsOf(o client.Object) retention.Facts {
	return retention.Facts{Namespace: o.GetNamespace(), Name: o.GetName(), Labels: o.GetLabels(), Annotations: o.GetAnnotations(),
		Created: o.GetCreationTimestamp().Time, Deleting: o.GetDeletionTimestamp() != nil}
}

// convert the facts to what the planner reads.
func (ps *pass) convert() {
	slices.SortFunc(ps.observed, func(a, b *observed) int { return strings.Compare(a.key(), b.key()) })
	ps.snapshots = make([]retention.Snapshot, len(ps.observed))
	ps.byKey = make(map[string]*observed, len(ps.observed))
	for i, o := range ps.observed {
		s, runs, err := o.facts.Snapshot()
		if err != nil { // somebody changed it: nobody knows what it is for, so nothing is done with it
			s.Policy, s.PolicyName, o.sick = "", "", err
		}
		if f := ps.mem.failures[s.Key]; f != nil && ps.mem.waits(s.Key, ps.now) != nil {
			s.RetryAt = f.until
		}
		o.runs, ps.snapshots[i], ps.byKey[s.Key] = runs, s, o
	}
}

// unmanaged counts the snapshots of the sources' claims that no policy manages.
func (ps *pass) countUnmanaged(ctx context.Context) (int, error) {
	n := 0
	for _, s := range ps.ch.order {
		for _, claim := range s.claims {
			var list snapshotv1.VolumeSnapshotList
			err := ps.c.Client.List(ctx, &list, client.InNamespace(claim.Namespace), noCopies,
				client.MatchingFields{fieldUnmanaged: claim.Namespace + "/" + claim.Name})
			if err != nil {
				return 0, fmt.Errorf("list VolumeSnapshots: %w", err)
			}
			for i := range list.Items {
				if len(groupsOf(&list.Items[i])) == 0 {
					n++
				}
			}
		}
	}
	return n, nil
}

// title of what an observed snapshot is of, for people.
func (o *observed) title() string {
	if o.facts.IsGroup {
		return o.facts.Namespace + "/group " + o.value
	}
	return o.facts.Namespace + "/" + o.claim
}

// claimOf an observed snapshot, if it is still the one that it was taken of; nil otherwise.
func (ps *pass) claimOf(ctx context.Context, o *observed) *corev1.PersistentVolumeClaim {
	if o.claim == "" {
		return nil
	}
	var claim corev1.PersistentVolumeClaim
	if err := ps.c.Client.Get(ctx, client.ObjectKey{Namespace: o.facts.Namespace, Name: o.claim}, &claim); err != nil {
		return nil
	}
	if string(claim.UID) != o.facts.Annotations[retention.AnnotationSource] {
		return nil
	}
	return &claim
}

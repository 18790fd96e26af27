package snapshotpolicy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/retention"
)

const (
	kindGroup  = "VolumeGroupSnapshot"
	groupGroup = "groupsnapshot.storage.k8s.io"
)

// groups makes a source of each label value that a chosen claim has. A cut takes every claim with that label in the namespace: one that the policy
// does not choose, or that is not bound, keeps the whole group from being cut.
func (ps *pass) groups(ch *chosen) {
	label := ps.p.group().ByLabel
	for namespace, claims := range ch.claims {
		// A cache lists in no order, and which claim a trouble names must not change from pass to pass: that would be a new status each time.
		slices.SortFunc(claims, func(a, b *claimEntry) int { return strings.Compare(a.Name, b.Name) })
		groups := map[string]*src{}
		wanted := map[string]bool{}
		for _, claim := range claims {
			value, labelled := claim.Labels[label]
			if claim.chosen && !labelled {
				ch.add(&src{key: string(claim.UID), namespace: namespace, name: claim.Name, claims: []*corev1.PersistentVolumeClaim{claim.PersistentVolumeClaim},
					trouble: &trouble{"NoGroup", fmt.Sprintf("it has no label %s (template.group.byLabel), so it is in no group and is not snapshotted", label)}})
			}
			if !labelled {
				continue
			}
			g := groups[value]
			if g == nil {
				g = &src{key: groupKey(namespace, value), namespace: namespace, name: value}
				groups[value] = g
			}
			wanted[value] = wanted[value] || claim.chosen
			ps.join(g, claim)
		}
		for value, g := range groups {
			ch.there[g.key] = true
			if wanted[value] {
				ch.add(g)
			}
		}
	}
}

func groupKey(namespace, value string) string { return namespace + "/" + value }

// join a claim to its group.
func (ps *pass) join(g *src, claim *claimEntry) {
	if claim.DeletionTimestamp != nil {
		return
	}
	g.claims = append(g.claims, claim.PersistentVolumeClaim)
	if g.since.IsZero() || claim.CreationTimestamp.Time.Before(g.since) {
		g.since = claim.CreationTimestamp.Time
	}
	switch {
	case claim.Spec.VolumeName == "":
		g.trouble = &trouble{"NotBound", fmt.Sprintf("label %s=%s also selects PVC %s, which is not bound: a group is cut whole or not at all",
			ps.p.group().ByLabel, g.name, claim.Name)}
	case !claim.chosen:
		g.trouble = &trouble{"NotChosen", fmt.Sprintf("label %s=%s also selects PVC %s, which the policy's selector does not choose or its annotation takes "+
			"away: a group is cut whole or not at all", ps.p.group().ByLabel, g.name, claim.Name)}
	}
}

// observeGroups lists the policy's VolumeGroupSnapshots, whether the policy still makes such or not.
func (ps *pass) observeGroups(ctx context.Context, uses map[string][]string) error {
	if ps.groupKind.Empty() {
		return nil
	}
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(ps.groupKind.GroupVersion().WithKind(kindGroup + "List"))
	options := []client.ListOption{}
	if !ps.p.cluster() {
		options = append(options, client.InNamespace(ps.p.obj.GetNamespace()))
	}
	if err := ps.c.others.reader.List(ctx, list, options...); err != nil {
		return fmt.Errorf("list VolumeGroupSnapshots: %w", err)
	}
	for i := range list.Items {
		u := &list.Items[i]
		if u.GetLabels()[retention.LabelPolicy] != ps.p.uid() &&
			!(ps.p.adopts() && u.GetAnnotations()[retention.AnnotationPolicy] == ps.p.annotation()) {
			continue
		}
		o, err := ps.groupSnapshot(ctx, u, uses)
		if err != nil {
			return err
		}
		ps.observed = append(ps.observed, o)
	}
	return nil
}

// groupSnapshot as facts: it is held and used as its members are.
func (ps *pass) groupSnapshot(ctx context.Context, u *unstructured.Unstructured, uses map[string][]string) (*observed, error) {
	o := &observed{obj: u, facts: factsOf(u)}
	f := &o.facts
	f.IsGroup = true
	labels, _, _ := unstructured.NestedStringMap(u.Object, "spec", "source", "selector", "matchLabels")
	for k, v := range labels {
		o.label, o.value = k, v
	}
	f.Source = groupKey(f.Namespace, o.value)
	f.Ready, _, _ = unstructured.NestedBool(u.Object, "status", "readyToUse")
	if at, _, _ := unstructured.NestedString(u.Object, "status", "creationTime"); at != "" {
		f.CutAt, _ = time.Parse(time.RFC3339, at)
	}
	if failed, found, _ := unstructured.NestedMap(u.Object, "status", "error"); found && failed != nil {
		message, _ := failed["message"].(string)
		f.Error = &message
	}
	var members snapshotv1.VolumeSnapshotList
	if err := ps.c.Client.List(ctx, &members, client.InNamespace(f.Namespace), noCopies,
		client.MatchingFields{fieldGroup: f.Namespace + "/" + f.Name}); err != nil {
		return nil, fmt.Errorf("list the members of VolumeGroupSnapshot %s: %w", f.Name, err)
	}
	slices.SortFunc(members.Items, func(a, b snapshotv1.VolumeSnapshot) int { return strings.Compare(a.Name, b.Name) })
	annotations := f.Annotations
	for i := range members.Items {
		m := &members.Items[i]
		o.parts = append(o.parts, client.ObjectKeyFromObject(m))
		f.UsedBy = append(f.UsedBy, uses[m.Namespace+"/"+m.Name]...)
		if why, held := m.Annotations[retention.AnnotationHold]; held && annotations[retention.AnnotationHold] == "" {
			f.Annotations = with(annotations, retention.AnnotationHold, fmt.Sprintf("its member %s is held: %s", m.Name, why))
		}
	}
	return o, nil
}

// heldSince asks the API server whether a member of a group is held: that changes nothing of the group itself, which is deleted as it was seen.
func (ps *pass) heldSince(ctx context.Context, o *observed) (bool, error) {
	for _, key := range o.parts {
		var member snapshotv1.VolumeSnapshot
		if err := ps.c.Live.Get(ctx, key, &member); client.IgnoreNotFound(err) != nil {
			return false, fmt.Errorf("get member %s of VolumeGroupSnapshot %s: %w", key.Name, o.facts.Name, err)
		}
		if _, held := member.Annotations[retention.AnnotationHold]; held {
			return true, nil
		}
	}
	return false, nil
}

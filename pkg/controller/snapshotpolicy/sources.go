package snapshotpolicy

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/controller/kit"
	"github.com/rowan-csi/rowan/pkg/retention"
)

const (
	// optOut is the annotation's value that takes a claim from all policies; clusterRef begins the name of a ClusterSnapshotPolicy there.
	optOut     = "none"
	clusterRef = "cluster/"
)

// noCopies: what a pass reads of the cache it does not change.
const noCopies = client.UnsafeDisableDeepCopy

// trouble is why no snapshot of a source can be taken.
type trouble struct{ reason, message string }

// src is what is snapshotted: a claim, or a group of them.
type src struct {
	key       string // a claim's UID; a group's namespace and label value
	namespace string
	name      string // a claim's; a group's label value
	claims    []*corev1.PersistentVolumeClaim
	since     time.Time // it is there
	driver    string
	pool      string // of our own driver
	trouble   *trouble
}

func (s *src) title() string { return s.namespace + "/" + s.name }

// chosen is what a policy finds.
type chosen struct {
	sources  map[string]*src
	order    []*src                   // by key
	there    map[string]bool          // keys of all sources that exist, chosen or not
	claims   map[string][]*claimEntry // of the namespaces that are looked at
	optedOut int
}

type claimEntry struct {
	*corev1.PersistentVolumeClaim
	chosen bool
}

// choose finds the policy's sources, and what else exists.
func (ps *pass) choose(ctx context.Context) (*chosen, error) {
	ch := &chosen{sources: map[string]*src{}, there: map[string]bool{}, claims: map[string][]*claimEntry{}}
	namespaces, err := ps.namespaces(ctx)
	if err != nil {
		return nil, err
	}
	var list corev1.PersistentVolumeClaimList
	options := []client.ListOption{noCopies}
	if !ps.p.cluster() {
		options = append(options, client.InNamespace(ps.p.obj.GetNamespace()))
	}
	if err := ps.c.Client.List(ctx, &list, options...); err != nil {
		return nil, fmt.Errorf("list claims: %w", err)
	}
	for i := range list.Items {
		claim := &list.Items[i]
		ch.there[string(claim.UID)] = true
		ns := namespaces[claim.Namespace]
		taken := ns != nil && ns.DeletionTimestamp == nil && claim.DeletionTimestamp == nil && ps.chooses(ctx, ns, claim, ch)
		ch.claims[claim.Namespace] = append(ch.claims[claim.Namespace], &claimEntry{claim, taken})
		if taken && !ps.p.grouped() && claim.Spec.VolumeName != "" { // one that is not bound has nothing to be snapshotted
			ch.add(&src{key: string(claim.UID), namespace: claim.Namespace, name: claim.Name, claims: []*corev1.PersistentVolumeClaim{claim},
				since: claim.CreationTimestamp.Time})
		}
	}
	if ps.p.grouped() {
		ps.groups(ch)
	}
	slices.SortFunc(ch.order, func(a, b *src) int { return strings.Compare(a.key, b.key) })
	for _, s := range ch.order {
		if err := ps.examine(ctx, s); err != nil {
			return nil, err
		}
	}
	return ch, nil
}

func (ch *chosen) add(s *src) {
	ch.sources[s.key] = s
	ch.order = append(ch.order, s)
}

// namespaces that are there, by name.
func (ps *pass) namespaces(ctx context.Context) (map[string]*metav1.PartialObjectMetadata, error) {
	found := map[string]*metav1.PartialObjectMetadata{}
	if !ps.p.cluster() {
		ns := kit.Meta("Namespace")
		if err := ps.c.Client.Get(ctx, client.ObjectKey{Name: ps.p.obj.GetNamespace()}, ns); err != nil {
			if apierrors.IsNotFound(err) {
				return found, nil
			}
			return nil, fmt.Errorf("get namespace: %w", err)
		}
		found[ns.Name] = ns
		return found, nil
	}
	list := kit.Metas("Namespace")
	if err := ps.c.Client.List(ctx, list, noCopies); err != nil {
		return nil, fmt.Errorf("list namespaces: %w", err)
	}
	for i := range list.Items {
		found[list.Items[i].Name] = &list.Items[i]
	}
	return found, nil
}

// chooses says whether snapshots of a claim are to be taken: its own annotation's word is above the selector's, a namespace's above both.
func (ps *pass) chooses(ctx context.Context, ns *metav1.PartialObjectMetadata, claim *corev1.PersistentVolumeClaim, ch *chosen) bool {
	if ps.p.cluster() && !ps.p.chooses(ns) {
		return false
	}
	selected := selects(&ps.p.spec.Selector, claim)
	said, says := claim.Annotations[v1alpha1.PolicyAnnotation]
	if !says {
		return selected
	}
	for _, name := range strings.Split(said, ",") {
		if strings.TrimSpace(name) == ps.p.ref() {
			return true
		}
	}
	if selected {
		ch.optedOut++
		ps.warnUnknown(ctx, claim, said)
	}
	return false
}

func selects(sel *retention.Selector, claim *corev1.PersistentVolumeClaim) bool {
	if len(sel.MatchLabels) == 0 && len(sel.StorageClassNames) == 0 {
		return sel.MatchAll
	}
	if len(sel.StorageClassNames) > 0 {
		if claim.Spec.StorageClassName == nil || !slices.Contains(sel.StorageClassNames, *claim.Spec.StorageClassName) {
			return false
		}
	}
	return containsAll(claim.Labels, sel.MatchLabels)
}

// warnUnknown tells the owner of a claim that it names a policy which is not there: nobody snapshots it.
func (ps *pass) warnUnknown(ctx context.Context, claim *corev1.PersistentVolumeClaim, said string) {
	for _, name := range strings.Split(said, ",") {
		name = strings.TrimSpace(name)
		if name == optOut {
			continue
		}
		key := client.ObjectKey{Namespace: claim.Namespace, Name: name}
		if rest, ok := strings.CutPrefix(name, clusterRef); ok {
			key = client.ObjectKey{Name: rest}
		}
		if found, err := ps.c.load(ctx, key); err != nil || found != nil {
			continue
		}
		if ps.mem.news("unknown "+string(claim.UID), said) {
			ps.c.Events.Eventf(claim, nil, corev1.EventTypeWarning, "UnknownSnapshotPolicy", "Select",
				"annotation %s names %q, and there is no such policy: %s does not snapshot this PVC; the value is %s, NAME or %sNAME", v1alpha1.PolicyAnnotation,
				kitShort(name), ps.p.title(), optOut, clusterRef)
		}
	}
}

// kitShort keeps what is quoted short.
func kitShort(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// examine finds a source's driver and pool, and why no snapshot of it can be taken.
func (ps *pass) examine(ctx context.Context, s *src) error {
	for _, claim := range s.claims {
		if s.trouble != nil {
			return nil
		}
		if claim.Status.Phase == corev1.ClaimLost {
			s.trouble = &trouble{"ClaimLost", "PVC " + claim.Name + " has lost its volume"}
			return nil
		}
		var volume corev1.PersistentVolume
		if err := ps.c.Client.Get(ctx, client.ObjectKey{Name: claim.Spec.VolumeName}, &volume, noCopies); err != nil {
			if !apierrors.IsNotFound(err) {
				return fmt.Errorf("get PersistentVolume %s: %w", claim.Spec.VolumeName, err)
			}
			s.trouble = &trouble{"VolumeMissing", "PersistentVolume " + claim.Spec.VolumeName + " is not there"}
			return nil
		}
		if volume.Spec.CSI == nil {
			s.trouble = &trouble{"NotCSI", fmt.Sprintf("the volume of PVC %s is not a CSI driver's: it has no snapshots; annotate the PVC with %s: %s",
				claim.Name, v1alpha1.PolicyAnnotation, optOut)}
			return nil
		}
		if err := ps.locate(ctx, s, claim, volume.Spec.CSI); err != nil {
			return err
		}
	}
	if s.trouble == nil {
		s.trouble = ps.classTrouble(s)
	}
	return nil
}

// locate a claim's volume, which must be where the others of its group are.
func (ps *pass) locate(ctx context.Context, s *src, claim *corev1.PersistentVolumeClaim, csi *corev1.CSIPersistentVolumeSource) error {
	if s.driver != "" && s.driver != csi.Driver {
		s.trouble = &trouble{"OtherDriver", fmt.Sprintf("label %s=%s also selects PVC %s, which is of driver %s, not %s: one cut is of one driver; "+
			"give the PVCs other values of the label", ps.p.group().ByLabel, s.name, claim.Name, csi.Driver, s.driver)}
		return nil
	}
	first := s.driver == ""
	s.driver = csi.Driver
	if csi.Driver != v1alpha1.DriverName || !ps.p.grouped() && !ps.p.presses() {
		return nil
	}
	var volume v1alpha1.LocalVolume
	if err := ps.c.Client.Get(ctx, client.ObjectKey{Name: csi.VolumeHandle}, &volume, noCopies); err != nil {
		return client.IgnoreNotFound(err)
	}
	if !first && s.pool != volume.Spec.Pool {
		s.trouble = &trouble{"OtherNode", fmt.Sprintf("label %s=%s also selects PVC %s, which is in pool %s on node %s, not in pool %s: one cut is of one "+
			"pool of one node; give the PVCs other values of the label", ps.p.group().ByLabel, s.name, claim.Name, volume.Spec.Pool, volume.Spec.NodeName, s.pool)}
		return nil
	}
	s.pool = volume.Spec.Pool
	return nil
}

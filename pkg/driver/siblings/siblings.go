// Package siblings keeps a pod's new volumes with its restored ones.
//
// rowan-controller places a claim that is made from a snapshot on the snapshot's node before its pod is placed. Where the scheduler was first, it
// chose any node for all claims of the pod: the restored volume is made on the snapshot's node all the same, and a new one would be made where the
// scheduler said. Then no node had both, for good. So a new volume is refused on another node than the one that its pod's other volumes need, with
// the one error (no space here) after which the scheduler is asked again; by then the restored claim says where it is.
//
// Contract: only a volume that is not made yet, has no source, and whose claim is known (csi-provisioner --extra-create-metadata) is refused, and
// only for a pod that has no node yet. All is read from the API server, at the cost of one list of the namespace's waiting pods for each such volume.
// A restored volume that is made elsewhere than the scheduler said is told on its claim: an event names the node, once for each answer.
// What cannot be read refuses nothing: this is a help, and the volume is right wherever it is made.
package siblings

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/proto"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/client-go/tools/events"
	"k8s.io/klog/v2"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/claims"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// The parameters in which csi-provisioner names the claim.
const (
	claimName      = "csi.storage.k8s.io/pvc/name"
	claimNamespace = "csi.storage.k8s.io/pvc/namespace"
)

// Guard is a controller service whose new volumes are kept with their siblings.
type Guard struct {
	csi.ControllerServer
	live   client.Reader
	find   claims.Finder
	events events.EventRecorder
}

// New guard of a controller service. live reads from the API server.
func New(next csi.ControllerServer, live client.Reader, recorder events.EventRecorder) *Guard {
	find := claims.Finder{Reader: live, Snapshots: func() bool { return true }}
	return &Guard{ControllerServer: next, live: live, find: find, events: recorder}
}

// CreateVolume refuses what is to be made where its pod cannot run.
func (g *Guard) CreateVolume(ctx context.Context, req *csi.CreateVolumeRequest) (*csi.CreateVolumeResponse, error) {
	if !g.placed(ctx, req) {
		resp, err := g.ControllerServer.CreateVolume(ctx, req)
		if err == nil {
			g.tell(ctx, req, resp)
		}
		return resp, err
	}
	if refusal, err := g.refusal(ctx, req); err != nil {
		klog.FromContext(ctx).Error(err, "Could not look at the other claims of a volume's pod", "volume", req.GetName())
	} else if refusal != "" {
		return nil, fmt.Errorf("%w: %s", volume.ErrNoSpace, refusal)
	}
	narrowed := g.drawn(ctx, req)
	resp, err := g.ControllerServer.CreateVolume(ctx, narrowed)
	if narrowed != req && (errors.Is(err, volume.ErrFailed) || errors.Is(err, volume.ErrNodeAway)) {
		// Looked at once more: another call for the same volume may have come in between.
		if made, e := g.made(ctx, req.GetName()); e == nil && !made {
			// Only this error has the scheduler draw another node. By then the drawn one's capacity is told as none.
			return nil, fmt.Errorf("%w on the node that was drawn, and another is asked for: %v", volume.ErrNoSpace, err)
		}
	}
	return resp, err
}

// placed says whether a request is for a new volume of a claim, for which a node was chosen, and which is not made yet: one that is, is answered for where
// it is.
func (g *Guard) placed(ctx context.Context, req *csi.CreateVolumeRequest) bool {
	if req.GetParameters()[claimName] == "" || req.GetParameters()[claimNamespace] == "" || req.GetVolumeContentSource() != nil ||
		len(req.GetAccessibilityRequirements().GetPreferred()) == 0 {
		return false
	}
	made, err := g.made(ctx, req.GetName())
	if err != nil {
		klog.FromContext(ctx).Error(err, "Could not look whether a volume is made already", "volume", req.GetName())
	}
	return err == nil && !made
}

// tell the claim of a copy that was made elsewhere than the scheduler said: its pod may have a rule that keeps it from there, and waits for ever then.
func (g *Guard) tell(ctx context.Context, req *csi.CreateVolumeRequest, resp *csi.CreateVolumeResponse) {
	preferred, at := req.GetAccessibilityRequirements().GetPreferred(), resp.GetVolume().GetAccessibleTopology()
	if req.GetVolumeContentSource() == nil || req.GetParameters()[claimName] == "" || len(preferred) == 0 || len(at) == 0 ||
		preferred[0].GetSegments()[v1alpha1.TopologyKey] == at[0].GetSegments()[v1alpha1.TopologyKey] {
		return
	}
	claim, err := g.claim(ctx, req)
	if err == nil && claim.Annotations[claims.SelectedNode] == "" {
		return // nobody chose a node
	}
	var source *claims.Location
	if err == nil {
		source, err = g.find.Source(ctx, claim)
	}
	if err != nil || source == nil { // gone meanwhile, or not to be read now
		klog.FromContext(ctx).Info("No event tells where a copy was made", "volume", req.GetName(), "error", err)
		return
	}
	g.events.Eventf(claim, nil, corev1.EventTypeNormal, "SourceNode", "Provision",
		"%s is on node %s, not on node %s, which was chosen first: the volume is made on node %s, and pods that use it run there",
		source.What, source.Node, claim.Annotations[claims.SelectedNode], source.Node)
}

// claim that a request is for.
func (g *Guard) claim(ctx context.Context, req *csi.CreateVolumeRequest) (*corev1.PersistentVolumeClaim, error) {
	claim := &corev1.PersistentVolumeClaim{}
	return claim, g.live.Get(ctx, client.ObjectKey{Namespace: req.GetParameters()[claimNamespace], Name: req.GetParameters()[claimName]}, claim)
}

// drawn narrows a request to the node that the scheduler drew for the claim, so that another one never takes its place because the drawn one is full or
// its agent away: the pod's other volumes are made there.
func (g *Guard) drawn(ctx context.Context, req *csi.CreateVolumeRequest) *csi.CreateVolumeRequest {
	preferred := req.GetAccessibilityRequirements().GetPreferred()
	if len(req.GetAccessibilityRequirements().GetRequisite()) < 2 { // there is no other
		return req
	}
	claim, err := g.claim(ctx, req)
	if err != nil {
		if !apierrors.IsNotFound(err) {
			klog.FromContext(ctx).Error(err, "Could not look at a volume's claim", "volume", req.GetName())
		}
		return req
	}
	if claim.Annotations[claims.SelectedNode] == "" {
		return req // of a class that binds at once: any node will do
	}
	narrowed := proto.Clone(req).(*csi.CreateVolumeRequest)
	narrowed.AccessibilityRequirements = &csi.TopologyRequirement{Requisite: preferred[:1], Preferred: preferred[:1]}
	return narrowed
}

// refusal says why a volume must not be made where it is asked for; "": it may.
func (g *Guard) refusal(ctx context.Context, req *csi.CreateVolumeRequest) (string, error) {
	name, namespace := req.GetParameters()[claimName], req.GetParameters()[claimNamespace]
	asked := req.GetAccessibilityRequirements().GetPreferred()[0].GetSegments()[v1alpha1.TopologyKey]
	var pods corev1.PodList
	if err := g.live.List(ctx, &pods, client.InNamespace(namespace), client.MatchingFields{"spec.nodeName": ""}); err != nil {
		return "", fmt.Errorf("list waiting pods: %w", err)
	}
	for i := range pods.Items {
		pod := &pods.Items[i]
		names := claims.OfPod(pod)
		if len(names) < 2 || !slices.Contains(names, name) {
			continue
		}
		for _, other := range names {
			if other == name {
				continue
			}
			identity, what, err := g.needs(ctx, namespace, other)
			if err != nil {
				return "", err
			}
			if identity == "" || identity == asked {
				continue
			}
			return fmt.Sprintf("node %s was chosen for claim %s, but pod %s uses it with %s, which is on node %s: the scheduler is asked again",
				asked, name, pod.Name, what, identity), nil
		}
	}
	return "", nil
}

// needs is the identity of the only node that can have a claim's volume, and why; "": any, or not known.
func (g *Guard) needs(ctx context.Context, namespace, name string) (identity, what string, err error) {
	var claim corev1.PersistentVolumeClaim
	if err := g.live.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, &claim); err != nil {
		if apierrors.IsNotFound(err) {
			return "", "", nil
		}
		return "", "", fmt.Errorf("get claim %s: %w", name, err)
	}
	node, what, err := g.find.Needs(ctx, &claim)
	if err != nil || node == "" {
		return "", "", err
	}
	var pools v1alpha1.PoolList
	if err := g.live.List(ctx, &pools, client.MatchingFields{"spec.nodeName": node}); err != nil {
		return "", "", fmt.Errorf("list pools of node %s: %w", node, err)
	}
	for _, p := range pools.Items {
		if p.Status.Identity != "" {
			return p.Status.Identity, what, nil
		}
	}
	return "", "", nil
}

// made says whether the volume's object is there: then it is answered for where it is.
func (g *Guard) made(ctx context.Context, name string) (bool, error) {
	var v v1alpha1.LocalVolume
	err := g.live.Get(ctx, client.ObjectKey{Name: volume.VolumeIDOf(name).String()}, &v)
	if apierrors.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("get volume %s: %w", name, err)
	}
	return true, nil
}

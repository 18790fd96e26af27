package cluster

import (
	"errors"
	"strings"
	"testing"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

const gi = int64(1) << 30

// testPool is a pool named after its PoolSet and identity, on the node of that name unless another is given, that serves.
func testPool(set, identity, node string, size int64) *v1alpha1.Pool {
	if node == "" {
		node = identity
	}
	q := bytes(size)
	p := &v1alpha1.Pool{
		ObjectMeta: metav1.ObjectMeta{Name: set + "-" + identity},
		Spec:       v1alpha1.PoolSpec{NodeName: node, PoolSet: set, PoolTemplate: v1alpha1.PoolTemplate{OvercommitPercent: 200}},
		Status:     v1alpha1.PoolStatus{UUID: "uuid-" + set + "-" + identity, Identity: identity, Size: &q},
	}
	setCondition(p, v1alpha1.Ready, metav1.ConditionTrue, "")
	return p
}

func setCondition(p *v1alpha1.Pool, kind string, status metav1.ConditionStatus, message string) {
	p.Status.Conditions = append(p.Status.Conditions, metav1.Condition{Type: kind, Status: status, Message: message})
}

func on(requisite, preferred string) volume.Placement {
	nodes := func(s string) (ids []volume.NodeID) {
		for _, f := range strings.Fields(s) {
			ids = append(ids, volume.NodeID(f))
		}
		return ids
	}
	return volume.Placement{Constrained: true, Requisite: nodes(requisite), Preferred: nodes(preferred)}
}

// TestPlace is the table of the placement rules.
func TestPlace(t *testing.T) {
	a, b, moved := testPool("default", "a", "", 100*gi), testPool("default", "b", "", 300*gi), testPool("default", "c", "node-new", 200*gi)
	fast, bare, failed := testPool("fast", "a", "", 50*gi), testPool("default", "d", "", 100*gi), testPool("default", "e", "", 100*gi)
	bare.Status = v1alpha1.PoolStatus{}
	failed.Status.Conditions = nil
	setCondition(failed, v1alpha1.Ready, metav1.ConditionFalse, "its disk is broken")
	away := map[string]bool{}
	inA := &origin{Origin: volume.Origin{Sizing: volume.Sizing{Size: 10 * gi, Requested: 10 * gi}, FSType: "ext4", Node: "a", Pool: a.Name},
		at: location(a), poolSet: "default"}
	inMoved := &origin{Origin: volume.Origin{Sizing: inA.Sizing, Node: "c", Pool: moved.Name}, at: location(moved), poolSet: "default"}
	gone := &origin{Origin: volume.Origin{Node: "z", Pool: "default-z"}, at: v1alpha1.Location{NodeName: "z", Pool: "default-z", PoolUUID: "u"}}
	for _, c := range []struct {
		name  string
		r     volume.CreateRequest
		set   string
		from  *origin
		away  string // nodes without an agent
		pools []*v1alpha1.Pool
		want  string // the pool
		err   error
		says  string
	}{
		{name: "anywhere: most space", pools: []*v1alpha1.Pool{a, b, moved}, want: "default-b"},
		{name: "preferred first", r: volume.CreateRequest{Placement: on("a b c", "c a b")}, pools: []*v1alpha1.Pool{a, b, moved}, want: "default-c"},
		{name: "second preference, by identity", r: volume.CreateRequest{Capacity: volume.Range{Required: 250 * gi}, Placement: on("a b c", "a c b")},
			pools: []*v1alpha1.Pool{a, b, moved}, want: "default-c"},
		{name: "a node's name is not its identity", r: volume.CreateRequest{Placement: on("node-new", "")}, pools: []*v1alpha1.Pool{moved},
			err: volume.ErrPlacement, says: "node-new"},
		{name: "requisite without preference", r: volume.CreateRequest{Placement: on("a c", "")}, pools: []*v1alpha1.Pool{a, b, moved}, want: "default-c"},
		{name: "the agent of the first is away", r: volume.CreateRequest{Placement: on("a b", "a b")}, away: "a", pools: []*v1alpha1.Pool{a, b},
			want: "default-b"},
		{name: "no agent", r: volume.CreateRequest{Placement: on("a b", "b a")}, away: "a b", pools: []*v1alpha1.Pool{a, b}, err: volume.ErrNodeAway,
			says: "node b"},
		{name: "full everywhere", r: volume.CreateRequest{Capacity: volume.Range{Required: 1000 * gi}}, pools: []*v1alpha1.Pool{a, b},
			err:  volume.ErrNoSpace,
			says: "default-b"},
		{name: "not made, failed, or fine", r: volume.CreateRequest{Placement: on("d e a", "d e a")}, pools: []*v1alpha1.Pool{a, bare, failed},
			want: "default-a"},
		{name: "not made", r: volume.CreateRequest{Placement: on("d", "")}, pools: []*v1alpha1.Pool{bare}, err: volume.ErrFailed, says: "not made yet"},
		{name: "failed", pools: []*v1alpha1.Pool{failed}, err: volume.ErrFailed, says: "its disk is broken"},
		{name: "excluded", r: volume.CreateRequest{Placement: on("x y", "x")}, pools: []*v1alpha1.Pool{a, b}, err: volume.ErrPlacement, says: "nodes a, b"},
		{name: "no node", r: volume.CreateRequest{Placement: on("", "")}, pools: []*v1alpha1.Pool{a}, err: volume.ErrPlacement},
		{name: "another PoolSet", set: "fast", pools: []*v1alpha1.Pool{b, fast}, want: "fast-a"},
		{name: "unknown PoolSet", r: volume.CreateRequest{Parameters: volume.Parameters{Pool: "slow"}}, set: "slow", pools: []*v1alpha1.Pool{b, fast},
			err: volume.ErrInvalid, says: "default, fast"},
		{name: "no pools at all", err: volume.ErrFailed, says: "kubectl get poolsets,pools"},
		{name: "no size", r: volume.CreateRequest{Capacity: volume.Range{Required: 2, Limit: 1}}, pools: []*v1alpha1.Pool{a}, err: volume.ErrOutOfRange},

		{name: "rule 1", r: volume.CreateRequest{Placement: on("a b", "a b")}, from: inA, pools: []*v1alpha1.Pool{a, b}, want: "default-a"},
		{name: "rule 2", r: volume.CreateRequest{Placement: on("a b", "b a")}, from: inA, pools: []*v1alpha1.Pool{a, b}, want: "default-a"},
		{name: "rule 2, disks moved", r: volume.CreateRequest{Placement: on("a c", "a c")}, from: inMoved, pools: []*v1alpha1.Pool{a, moved},
			want: "default-c"},
		{name: "rule 3", r: volume.CreateRequest{Placement: on("b", "b")}, from: inA, pools: []*v1alpha1.Pool{a, b}, err: volume.ErrPlacement,
			says: "node a,"},
		{name: "rule 3, disks moved", r: volume.CreateRequest{Placement: on("b", "b")}, from: inMoved, pools: []*v1alpha1.Pool{moved, b},
			err:  volume.ErrPlacement,
			says: "node node-new (identity c)"},
		{name: "rule 4", r: volume.CreateRequest{Placement: on("a b", "b")}, from: inA, away: "a", pools: []*v1alpha1.Pool{a, b}, err: volume.ErrNodeAway,
			says: "node a "},
		{name: "copy, full", r: volume.CreateRequest{Capacity: volume.Range{Required: 201 * gi}}, from: inA, pools: []*v1alpha1.Pool{a, b},
			err: volume.ErrNoSpace},
		{name: "copy into another PoolSet", r: volume.CreateRequest{Parameters: volume.Parameters{Pool: "fast"}}, set: "fast", from: inA,
			pools: []*v1alpha1.Pool{a, fast}, err: volume.ErrInvalid, says: "PoolSet default"},
		{name: "copy, PoolSet named", r: volume.CreateRequest{Parameters: volume.Parameters{Pool: "default"}}, from: inA, pools: []*v1alpha1.Pool{a},
			want: "default-a"},
		{name: "copy with another file system", r: volume.CreateRequest{FSType: "xfs"}, from: inA, pools: []*v1alpha1.Pool{a}, err: volume.ErrInvalid,
			says: "fstype: ext4"},
		{name: "the source's Pool is gone", from: gone, pools: []*v1alpha1.Pool{a}, err: volume.ErrFailed, says: "no Pool object"},
	} {
		t.Run(c.name, func(t *testing.T) {
			clear(away)
			for _, n := range strings.Fields(c.away) {
				away[n] = true
			}
			var pools []candidate
			for _, p := range c.pools {
				one := candidateOf(p, nil, anyVolume)
				if away[p.Spec.NodeName] {
					one.away = (&agents{}).away(p.Spec.NodeName)
				}
				pools = append(pools, one)
			}
			set := c.set
			if set == "" {
				set = "default"
			}
			p, sizing, err := place(c.r, set, c.from, pools)
			switch {
			case !errors.Is(err, c.err) || c.err != nil && !strings.Contains(err.Error(), c.says):
				t.Errorf("%v, want %v saying %q", err, c.err, c.says)
			case err == nil && (p.Name != c.want || !c.r.Capacity.Accepts(sizing.Size)):
				t.Errorf("%s, %+v; want %s", p.Name, sizing, c.want)
			}
			if errors.Is(err, volume.ErrNoSpace) && c.err != volume.ErrNoSpace {
				t.Errorf("%v: only space is ErrNoSpace: the side-car would try other nodes for ever", err)
			}
		})
	}
}

// TestSpace is the table of what a pool has left.
func TestSpace(t *testing.T) {
	with := func(size, grown int64, kind volume.Provisioning, conditions ...string) v1alpha1.LocalVolume {
		v := v1alpha1.LocalVolume{Spec: v1alpha1.LocalVolumeSpec{
			Location: v1alpha1.Location{PoolUUID: "uuid-default-a"}, Size: bytes(size), Provisioning: string(kind),
		}}
		if grown != 0 {
			q := bytes(grown)
			v.Status.Size = &q
		}
		for _, c := range conditions {
			v.Status.Conditions = append(v.Status.Conditions, metav1.Condition{Type: c, Status: metav1.ConditionTrue})
		}
		return v
	}
	foreign := with(gi, 0, "")
	foreign.Spec.PoolUUID = "other"
	for _, c := range []struct {
		name        string
		change      func(p *v1alpha1.Pool)
		volumes     []v1alpha1.LocalVolume
		thin, thick int64 // what is left, in GiB
		err         error // of admitting anything
	}{
		{name: "empty", thin: 200, thick: 100},
		{name: "thin ones", volumes: []v1alpha1.LocalVolume{with(30*gi, 0, ""), with(20*gi, 0, "thin")}, thin: 150, thick: 100},
		{name: "a growth that is wanted counts", volumes: []v1alpha1.LocalVolume{with(30*gi, 10*gi, "")}, thin: 170, thick: 100},
		{name: "thick ones count once against the size", volumes: []v1alpha1.LocalVolume{with(60*gi, 0, "thick"), with(10*gi, 0, "")}, thin: 70, thick: 40},
		{name: "deleted, and another pool's", volumes: []v1alpha1.LocalVolume{with(gi, 0, "", v1alpha1.Deleted), foreign}, thin: 200, thick: 100},
		{name: "tombstones count", volumes: []v1alpha1.LocalVolume{with(10*gi, 0, "", v1alpha1.NodeLost)}, thin: 190, thick: 100},
		{name: "orphans", change: func(p *v1alpha1.Pool) { q := bytes(50 * gi); p.Status.OrphanSize = &q }, thin: 150, thick: 100},
		{name: "overcommit", change: func(p *v1alpha1.Pool) { p.Spec.OvercommitPercent = 100 }, thin: 100, thick: 100},
		{name: "default overcommit", change: func(p *v1alpha1.Pool) { p.Spec.OvercommitPercent = 0 }, thin: 200, thick: 100},
		{name: "overpromised", volumes: []v1alpha1.LocalVolume{with(500*gi, 0, "")}},
		{name: "scarce", change: func(p *v1alpha1.Pool) { setCondition(p, v1alpha1.SpaceScarce, metav1.ConditionTrue, "") }, err: volume.ErrNoSpace},
		{name: "growth stopped", change: func(p *v1alpha1.Pool) { setCondition(p, v1alpha1.GrowthStopped, metav1.ConditionTrue, "81 %") },
			err: volume.ErrNoSpace},
		{name: "growth goes on", change: func(p *v1alpha1.Pool) { setCondition(p, v1alpha1.GrowthStopped, metav1.ConditionFalse, "") }, thin: 200,
			thick: 100},
		{name: "not ready", change: func(p *v1alpha1.Pool) { p.Status.Conditions[0].Status = metav1.ConditionFalse }, err: volume.ErrFailed},
		{name: "unknown", change: func(p *v1alpha1.Pool) { p.Status.Conditions[0].Status = metav1.ConditionUnknown }, err: volume.ErrFailed},
		{name: "given up", change: func(p *v1alpha1.Pool) { p.Spec.DesiredState = v1alpha1.Absent }, err: volume.ErrFailed},
		{name: "no size yet", change: func(p *v1alpha1.Pool) { p.Status.Size = nil }},
	} {
		t.Run(c.name, func(t *testing.T) {
			p := testPool("default", "a", "", 100*gi)
			if c.change != nil {
				c.change(p)
			}
			k := candidateOf(p, c.volumes, anyVolume)
			for kind, want := range map[volume.Provisioning]int64{volume.ProvisionThin: c.thin, volume.ProvisionThick: c.thick} {
				got := k.capacity(volume.FSXFS, kind)
				if got.Available != want*gi || got.MaxVolume != want*gi || got.MinVolume != volume.MinXFSSize {
					t.Errorf("%s: %+v, want %d GiB", kind, got, want)
				}
				// What is told is what is admitted, to the byte.
				if err := k.admit(want*gi, kind); !errors.Is(err, c.err) {
					t.Errorf("%s: admit %d GiB: %v, want %v", kind, want, err, c.err)
				}
				if err := k.admit(want*gi+1, kind); c.err == nil && !errors.Is(err, volume.ErrNoSpace) {
					t.Errorf("%s: admit more than %d GiB: %v", kind, want, err)
				}
			}
		})
	}
}

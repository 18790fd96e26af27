package volume

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// MaxGroup is the most volumes that are cut at once.
const MaxGroup = 256

// GroupRequest asks for snapshots of several volumes in one cut: together they hold a write only with all that had returned when it was sent, whichever
// their volumes.
type GroupRequest struct {
	Name    string
	Sources []VolumeID // the order means nothing
	// Consistency is that of all its snapshots; "": ConsistencyCrash. ConsistencyFreeze freezes all file systems for the one cut.
	Consistency Consistency
}

// ID is the handle that the group has or will have.
func (r GroupRequest) ID() GroupID { return GroupIDOf(r.Name) }

// Check validates what can be judged without looking at anything else.
func (r GroupRequest) Check() error {
	if err := checkName("snapshot group", r.Name); err != nil {
		return err
	}
	if n := len(r.Sources); n < 1 || n > MaxGroup {
		return fmt.Errorf("%w: snapshot group %q of %d volumes: 1 to %d can be cut at once", ErrInvalid, r.Name, n, MaxGroup)
	}
	seen := make(map[VolumeID]bool, len(r.Sources))
	for _, id := range r.Sources {
		if seen[id] {
			return fmt.Errorf("%w: snapshot group %q: volume %s is given twice", ErrInvalid, r.Name, id)
		}
		seen[id] = true
	}
	return nil
}

// Members are the snapshots that the group consists of, in the order of their sources' handles. Each name is made of the group's and its source, so that
// a repeated request means the same snapshots, and fits MaxNameLen whatever the group's name.
func (r GroupRequest) Members() []SnapshotRequest {
	sources := slices.SortedFunc(slices.Values(r.Sources), VolumeID.Compare)
	members := make([]SnapshotRequest, len(sources))
	for i, source := range sources {
		members[i] = SnapshotRequest{Name: r.ID().String() + "/" + source.String(), Source: source}
	}
	return members
}

// Group is the snapshots of one cut. They are deleted together, and not one by one.
type Group struct {
	ID        GroupID
	Snapshots []Snapshot // in the order of their sources' handles
	CreatedAt time.Time  // of the cut
}

// Satisfies says whether the group is what the request asks for: nil, or ErrExists.
func (g Group) Satisfies(r GroupRequest) error {
	have := make(map[VolumeID]bool, len(g.Snapshots))
	for _, s := range g.Snapshots {
		have[s.Source] = true
	}
	for _, id := range r.Sources {
		if !have[id] {
			return fmt.Errorf("%w: snapshot group %q has no snapshot of volume %s, which is asked for", ErrExists, r.Name, id)
		}
		delete(have, id)
	}
	for _, id := range slices.SortedFunc(maps.Keys(have), VolumeID.Compare) {
		return fmt.Errorf("%w: snapshot group %q has a snapshot of volume %s, which is not asked for", ErrExists, r.Name, id)
	}
	return nil
}

// Handles are those of the group's snapshots.
func (g Group) Handles() []SnapshotID {
	ids := make([]SnapshotID, len(g.Snapshots))
	for i, s := range g.Snapshots {
		ids[i] = s.ID
	}
	return ids
}

// MatchMembers is ErrInvalid where a caller's idea of what a group consists of is not what it has. No idea at all is none that is wrong.
func MatchMembers(id GroupID, have, said []SnapshotID) error {
	if len(said) == 0 {
		return nil
	}
	for _, s := range said {
		if !slices.Contains(have, s) {
			return fmt.Errorf("%w: snapshot %s is not of group %s", ErrInvalid, s, id)
		}
	}
	for _, s := range have {
		if !slices.Contains(said, s) {
			return fmt.Errorf("%w: group %s has a snapshot %s, too, which is not among the %d named", ErrInvalid, id, s, len(said))
		}
	}
	return nil
}

// RefuseMember is ErrGrouped for a snapshot that is deleted with its group alone.
func RefuseMember(id SnapshotID, group GroupID) error {
	return fmt.Errorf("%w: snapshot %s is of group %s and goes with it: delete that group (its VolumeGroupSnapshot)", ErrGrouped, id, group)
}

// Place is where a volume is, for CheckTogether.
type Place struct {
	Volume string // a name that a person knows it by
	Pool   string
	Node   string
}

// CheckTogether is ErrApart, with every pool and the volumes in it, unless all are in one: a cut is of one pool.
func CheckTogether(places []Place) error {
	type pool struct{ name, node string }
	in := map[pool][]string{}
	var order []pool
	for _, p := range places {
		at := pool{p.Pool, p.Node}
		if in[at] == nil {
			order = append(order, at)
		}
		in[at] = append(in[at], p.Volume)
	}
	if len(order) <= 1 {
		return nil
	}
	var words []string
	for _, at := range order {
		names := in[at]
		const most = 4
		if n := len(names); n > most {
			names = append(names[:most:most], fmt.Sprintf("%d more", n-most))
		}
		words = append(words, fmt.Sprintf("%s in pool %s on node %s", strings.Join(names, ", "), at.name, at.node))
	}
	return fmt.Errorf("%w: %s: only volumes of one pool can be cut at the same moment. Change the labels that choose them, or have their pods, and so "+
		"their volumes, on one node", ErrApart, strings.Join(words, "; "))
}

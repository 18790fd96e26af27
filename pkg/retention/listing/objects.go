package listing

import (
	"encoding/json"
	"fmt"
	"time"

	"github.com/rowan-csi/rowan/pkg/retention"
)

// beingCreated is the snapshot side-car's annotation of a VolumeSnapshotContent whose snapshot may be in the making.
const beingCreated = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"

// object has the fields of all the kinds that are read here.
type object struct {
	Kind     string   `json:"kind"`
	Items    []object `json:"items"`
	Metadata struct {
		Name              string            `json:"name"`
		Namespace         string            `json:"namespace"`
		UID               string            `json:"uid"`
		Labels            map[string]string `json:"labels"`
		Annotations       map[string]string `json:"annotations"`
		CreationTimestamp time.Time         `json:"creationTimestamp"`
		DeletionTimestamp *time.Time        `json:"deletionTimestamp"`
		OwnerReferences   []struct {
			Kind string `json:"kind"`
			Name string `json:"name"`
		} `json:"ownerReferences"`
	} `json:"metadata"`
	Spec struct {
		Source     snapshotSource `json:"source"`
		VolumeName string         `json:"volumeName"`
		DataSource *struct {
			Kind string `json:"kind"`
			Name string `json:"name"`
		} `json:"dataSource"`
	} `json:"spec"`
	Status struct {
		ReadyToUse                     *bool      `json:"readyToUse"`
		CreationTime                   createTime `json:"creationTime"`
		BoundVolumeSnapshotContentName string     `json:"boundVolumeSnapshotContentName"`
		VolumeGroupSnapshotName        string     `json:"volumeGroupSnapshotName"`
		Error                          *struct {
			Message string `json:"message"`
		} `json:"error"`
	} `json:"status"`
}

type snapshotSource struct {
	PersistentVolumeClaimName string `json:"persistentVolumeClaimName"`
	VolumeSnapshotContentName string `json:"volumeSnapshotContentName"`
	Selector                  *struct {
		MatchLabels map[string]string `json:"matchLabels"`
	} `json:"selector"`
}

// createTime is a time, but for a VolumeSnapshotContent, whose creation time is a number and not looked at.
type createTime struct{ time.Time }

func (c *createTime) UnmarshalJSON(data []byte) error {
	if len(data) > 0 && data[0] != '"' {
		return nil
	}
	return c.Time.UnmarshalJSON(data)
}

func (o *object) key() string { return o.Metadata.Namespace + "/" + o.Metadata.Name }

func readObjects(data []byte) (List, error) {
	var top object
	if err := json.Unmarshal(data, &top); err != nil {
		return List{}, fmt.Errorf("%w: %w", ErrFormat, err)
	}
	items := top.Items
	if top.Items == nil && (top.Kind == "VolumeSnapshot" || top.Kind == "VolumeGroupSnapshot") {
		items = []object{top}
	} else if top.Items == nil {
		return List{}, fmt.Errorf("%w: a %s has no items", ErrFormat, top.Kind)
	}
	c := cluster{claims: map[string]*object{}, contents: map[string]*object{}, uses: map[string][]string{}}
	var snapshots []*object
	for i := range items {
		o := &items[i]
		switch o.Kind {
		case "VolumeSnapshot", "VolumeGroupSnapshot":
			snapshots = append(snapshots, o)
		case "PersistentVolumeClaim":
			c.claims[o.key()] = o
			if d := o.Spec.DataSource; d != nil && d.Kind == "VolumeSnapshot" && o.Spec.VolumeName == "" {
				at := o.Metadata.Namespace + "/" + d.Name
				c.uses[at] = append(c.uses[at], "PVC "+o.key())
			}
		case "VolumeSnapshotContent":
			c.contents[o.Metadata.Name] = o
		default:
			return List{}, fmt.Errorf("%w: item %d is a %q; VolumeSnapshot, VolumeGroupSnapshot, PersistentVolumeClaim and VolumeSnapshotContent "+
				"are read", ErrFormat, i, o.Kind)
		}
	}
	return c.list(snapshots)
}

// cluster is what belongs to the snapshots.
type cluster struct {
	claims, contents map[string]*object
	uses             map[string][]string
}

func (c *cluster) list(snapshots []*object) (List, error) {
	l := List{Snapshots: []retention.Snapshot{}}
	known := map[string]bool{}
	for _, o := range snapshots {
		s, name, err := c.snapshot(o)
		if err != nil {
			return List{}, err
		}
		l.Snapshots = append(l.Snapshots, s)
		if !known[s.Source] {
			known[s.Source] = true
			l.Sources = append(l.Sources, retention.Source{Key: s.Source, Name: name})
		}
	}
	return l, nil
}

func (c *cluster) snapshot(o *object) (s retention.Snapshot, source string, err error) {
	m := &o.Metadata
	f := retention.Facts{Namespace: m.Namespace, Name: m.Name, IsGroup: o.Kind == "VolumeGroupSnapshot", Labels: m.Labels, Annotations: m.Annotations,
		Created: m.CreationTimestamp, Deleting: m.DeletionTimestamp != nil, CutAt: o.Status.CreationTime.Time, UsedBy: c.uses[o.key()]}
	if o.Status.ReadyToUse != nil {
		f.Ready = *o.Status.ReadyToUse
	}
	if o.Status.Error != nil {
		f.Error = &o.Status.Error.Message
	}
	for _, owner := range m.OwnerReferences {
		if owner.Kind == "VolumeGroupSnapshot" {
			f.Groups = append(f.Groups, owner.Name)
		}
	}
	if g := o.Status.VolumeGroupSnapshotName; g != "" && len(f.Groups) == 0 {
		f.Groups = append(f.Groups, g)
	}
	if content := c.contents[o.Status.BoundVolumeSnapshotContentName]; content != nil {
		_, f.Making = content.Metadata.Annotations[beingCreated]
	}
	f.Source, source = c.source(o)
	if s, _, err = f.Snapshot(); err != nil {
		return s, "", fmt.Errorf("%w: snapshot %s, %w", ErrFormat, s.Key, err)
	}
	return s, source, nil
}

// source is the key and the name of what an object is a snapshot of, where our annotation does not tell: the PVC's UID, without the PVC its name.
func (c *cluster) source(o *object) (key, name string) {
	from := o.Spec.Source
	switch {
	case from.PersistentVolumeClaimName != "":
		name = o.Metadata.Namespace + "/" + from.PersistentVolumeClaimName
		if claim := c.claims[name]; claim != nil {
			key = claim.Metadata.UID
		}
	case from.Selector != nil:
		name = fmt.Sprintf("%s/group %v", o.Metadata.Namespace, from.Selector.MatchLabels)
	default:
		name = "content " + from.VolumeSnapshotContentName
	}
	if key == "" {
		key = name
	}
	return key, name
}

// Package listing reads lists of snapshots from JSON, for planning without a cluster.
//
// It reads two forms. One is this package's own: an object with the lists "snapshots" and, if more is known, "sources" and "pools", and "now"; or
// only the list of snapshots. Their fields are those of retention.Snapshot, retention.Source and retention.Pool. The other is what kubectl prints: a
// List of VolumeSnapshots and VolumeGroupSnapshots, with the PersistentVolumeClaims and VolumeSnapshotContents that belong to them if they were asked
// for too.
//
// Fields that are not known are refused in the first form and passed over in the second, which is not ours. At most MaxSnapshots are read. What only
// a cluster knows is not known here: what uses a snapshot beyond the PVCs in the list, and when a PVC was deleted.
package listing

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/rowan-csi/rowan/pkg/retention"
)

// MaxSnapshots is how many snapshots a list may have.
const MaxSnapshots = 1_000_000

// ErrFormat: the text is no list of snapshots.
var ErrFormat = errors.New("not a list of snapshots")

// List is what was read.
type List struct {
	// Now is when the list was made, zero if it does not say.
	Now       time.Time            `json:"now,omitzero"`
	Sources   []retention.Source   `json:"sources,omitempty"`
	Pools     []retention.Pool     `json:"pools,omitempty"`
	Snapshots []retention.Snapshot `json:"snapshots"`
}

// Read reads either form.
func Read(data []byte) (List, error) {
	data = bytes.TrimSpace(data)
	if len(data) == 0 {
		return List{}, fmt.Errorf("%w: it is empty", ErrFormat)
	}
	var l List
	var err error
	var probe struct {
		Kind string `json:"kind"`
	}
	switch {
	case data[0] == '[':
		err = strict(data, &l.Snapshots)
	case json.Unmarshal(data, &probe) == nil && probe.Kind != "":
		l, err = readObjects(data)
	default:
		err = strict(data, &l)
	}
	if err != nil {
		return List{}, fmt.Errorf("read list of snapshots: %w", err)
	}
	return l, l.check()
}

func strict(data []byte, to any) error {
	d := json.NewDecoder(bytes.NewReader(data))
	d.DisallowUnknownFields()
	if err := d.Decode(to); err != nil {
		return fmt.Errorf("%w: %w", ErrFormat, err)
	}
	if _, err := d.Token(); err != io.EOF {
		return fmt.Errorf("%w: more than one value", ErrFormat)
	}
	return nil
}

func (l *List) check() error {
	if len(l.Snapshots) > MaxSnapshots {
		return fmt.Errorf("%w: it has %d snapshots, %d at most", ErrFormat, len(l.Snapshots), MaxSnapshots)
	}
	seen := make(map[string]bool, len(l.Snapshots))
	for i := range l.Snapshots {
		s := &l.Snapshots[i]
		switch {
		case s.Key == "":
			return fmt.Errorf("%w: snapshots[%d] has no name", ErrFormat, i)
		case s.Source == "":
			return fmt.Errorf("%w: snapshot %s has no source", ErrFormat, s.Key)
		case seen[s.Key]:
			return fmt.Errorf("%w: snapshot %s is there twice", ErrFormat, s.Key)
		case s.Ready && s.CreatedAt.IsZero():
			return fmt.Errorf("%w: snapshot %s is ready and has no createdAt", ErrFormat, s.Key)
		}
		seen[s.Key] = true
	}
	return nil
}

package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strings"
)

const (
	volumePrefix   = "vol-"
	snapshotPrefix = "snap-"
	groupPrefix    = "group-"
	hashLen        = 40 // hex digits of the name's SHA-256 that a handle keeps
)

// VolumeID is the handle of a volume: a function of the name it was asked for under, so that asking twice means the same volume whoever answers. The
// zero value names nothing.
type VolumeID struct{ s string }

// VolumeIDOf is the handle of the volume of that name.
func VolumeIDOf(name string) VolumeID { return VolumeID{volumePrefix + hashOf(name)} }

// ParseVolumeID is String's inverse. Its error is ErrMalformedID: no volume has such a handle.
func ParseVolumeID(s string) (VolumeID, error) {
	if err := parseHandle(s, volumePrefix); err != nil {
		return VolumeID{}, fmt.Errorf("volume %q: %w", s, err)
	}
	return VolumeID{s}, nil
}

func (id VolumeID) String() string { return id.s }

// IsZero says whether the ID names nothing.
func (id VolumeID) IsZero() bool { return id.s == "" }

// Compare orders handles as their text.
func (id VolumeID) Compare(other VolumeID) int { return strings.Compare(id.s, other.s) }

// SnapshotID is the handle of a snapshot, made as a VolumeID is.
type SnapshotID struct{ s string }

// SnapshotIDOf is the handle of the snapshot of that name.
func SnapshotIDOf(name string) SnapshotID { return SnapshotID{snapshotPrefix + hashOf(name)} }

// ParseSnapshotID is String's inverse. Its error is ErrMalformedID: no snapshot has such a handle.
func ParseSnapshotID(s string) (SnapshotID, error) {
	if err := parseHandle(s, snapshotPrefix); err != nil {
		return SnapshotID{}, fmt.Errorf("snapshot %q: %w", s, err)
	}
	return SnapshotID{s}, nil
}

func (id SnapshotID) String() string { return id.s }

// IsZero says whether the ID names nothing.
func (id SnapshotID) IsZero() bool { return id.s == "" }

// Compare orders handles as their text.
func (id SnapshotID) Compare(other SnapshotID) int { return strings.Compare(id.s, other.s) }

// GroupID is the handle of a group of snapshots, made as a VolumeID is.
type GroupID struct{ s string }

// GroupIDOf is the handle of the group of that name.
func GroupIDOf(name string) GroupID { return GroupID{groupPrefix + hashOf(name)} }

// ParseGroupID is String's inverse. Its error is ErrMalformedID: no group has such a handle.
func ParseGroupID(s string) (GroupID, error) {
	if err := parseHandle(s, groupPrefix); err != nil {
		return GroupID{}, fmt.Errorf("snapshot group %q: %w", s, err)
	}
	return GroupID{s}, nil
}

func (id GroupID) String() string { return id.s }

// IsZero says whether the ID names nothing.
func (id GroupID) IsZero() bool { return id.s == "" }

// NodeID is the identity of a node: the topology value of what lives there.
type NodeID string

func hashOf(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:])[:hashLen]
}

func parseHandle(s, prefix string) error {
	digits, ok := strings.CutPrefix(s, prefix)
	if !ok || len(digits) != hashLen || strings.Trim(digits, "0123456789abcdef") != "" {
		return fmt.Errorf("%w: a handle is %q and %d hex digits", ErrMalformedID, prefix, hashLen)
	}
	return nil
}

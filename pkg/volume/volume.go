package volume

import (
	"cmp"
	"fmt"
	"strings"
	"time"
	"unicode/utf8"
)

// MaxNameLen is the most bytes of a volume's or snapshot's name.
const MaxNameLen = 128

// Mode says who moves when a block that a snapshot shows is written.
type Mode string

// The modes.
const (
	// ModeROW: the new data moves. Best for writes.
	ModeROW Mode = "row"
	// ModeCOW: the old data moves, and the volume keeps its layout. Best for reads.
	ModeCOW Mode = "cow"
)

// Check refuses what is no mode. Empty is the service's default.
func (m Mode) Check() error {
	if m != "" && m != ModeROW && m != ModeCOW {
		return fmt.Errorf("%w: mode %q: use %s (new data is redirected: best for writes) or %s (old data is copied away: best for reads)",
			ErrInvalid, m, ModeROW, ModeCOW)
	}
	return nil
}

// Provisioning says when a volume takes its space.
type Provisioning string

const (
	// ProvisionThin: as it is written.
	ProvisionThin Provisioning = "thin"
	// ProvisionThick: all of its size is set aside, so that no write to it lacks space.
	ProvisionThick Provisioning = "thick"
)

// CheckProvisioning refuses what is neither. "" stands for the default, thin.
func CheckProvisioning(p Provisioning) error {
	switch p {
	case "", ProvisionThin, ProvisionThick:
		return nil
	}
	return fmt.Errorf("%w: provisioning %q: use %s or %s", ErrInvalid, p, ProvisionThin, ProvisionThick)
}

// Parameters are what a storage class may choose. The zero value of each means the service's default.
type Parameters struct {
	Pool         string
	Mode         Mode
	Tidy         bool // move the volume's scattered blocks back into sequence in the background
	Provisioning Provisioning
}

// Mutable are the parameters of a volume that may change while it lives. What is absent stays as it is.
type Mutable struct {
	Mode *Mode
	Tidy *bool
}

// Check refuses what is not acceptable.
func (m Mutable) Check() error {
	if m.Mode == nil {
		return nil
	}
	return m.Mode.Check()
}

// With is the parameters after the change.
func (p Parameters) With(m Mutable) Parameters {
	if m.Mode != nil {
		p.Mode = *m.Mode
	}
	if m.Tidy != nil {
		p.Tidy = *m.Tidy
	}
	return p
}

// Source is what a new volume is a copy of: nothing, a snapshot or a volume.
type Source struct {
	Snapshot SnapshotID
	Volume   VolumeID
}

// IsZero says whether there is no source.
func (s Source) IsZero() bool { return s.Snapshot.IsZero() && s.Volume.IsZero() }

func (s Source) String() string {
	switch {
	case !s.Snapshot.IsZero():
		return "snapshot " + s.Snapshot.String()
	case !s.Volume.IsZero():
		return "volume " + s.Volume.String()
	}
	return "nothing"
}

// Placement says which nodes a volume may be on. No Requisite means any. Preferred comes in descending order and names nodes of Requisite.
type Placement struct {
	Constrained bool // Requisite applies, though it may name no node at all
	Requisite   []NodeID
	Preferred   []NodeID
}

// Allows says whether the volume may be on the node.
func (p Placement) Allows(node NodeID) bool {
	if !p.Constrained {
		return true
	}
	for _, n := range p.Requisite {
		if n == node {
			return true
		}
	}
	return false
}

// CreateRequest asks for a volume. FSType is "" for a raw block volume.
type CreateRequest struct {
	Name       string
	Capacity   Range
	FSType     string
	Parameters Parameters
	Source     Source
	Placement  Placement
}

// ID is the handle that the volume has or will have.
func (r CreateRequest) ID() VolumeID { return VolumeIDOf(r.Name) }

// Check validates what can be judged without looking at anything else.
func (r CreateRequest) Check() error {
	if err := checkName("volume", r.Name); err != nil {
		return err
	}
	if !r.Source.Snapshot.IsZero() && !r.Source.Volume.IsZero() {
		return fmt.Errorf("%w: volume %q: a snapshot and a volume as sources, at most one is possible", ErrInvalid, r.Name)
	}
	if err := r.Parameters.Mode.Check(); err != nil {
		return fmt.Errorf("volume %q: %w", r.Name, err)
	}
	if err := CheckProvisioning(r.Parameters.Provisioning); err != nil {
		return err
	}
	return CheckFS(r.FSType)
}

// FormatState says how far making the volume's file system has come.
type FormatState string

// The steps of formatting. A volume whose maker died between them is formatted again: nobody has used it.
const (
	FormatNone    FormatState = ""
	FormatStarted FormatState = "started"
	FormatDone    FormatState = "done"
)

// Volume is a volume as it is now.
type Volume struct {
	ID         VolumeID
	Name       string
	Sizing     Sizing
	FSType     string // asked for when it was made; "" for raw block
	Parameters Parameters
	Source     Source
	Node       NodeID
	Pool       string
	CreatedAt  time.Time
	Format     FormatState
	Written    bool // something was written to it since it was made
	HasParent  bool // it began as, or was put back to, the content of a snapshot
	Attached   bool // it has a device on its node
	Mapped     int64
}

// MayFormat says whether making a file system destroys nothing: the volume never held anything, or holds what is left of making one. Looking at the
// device does not decide: a damaged file system looks like an empty device.
func (v Volume) MayFormat() bool {
	return !v.HasParent && (!v.Written || v.Format == FormatStarted)
}

// Satisfies says whether the volume is what the request asks for: nil, or ErrExists naming the first difference.
func (v Volume) Satisfies(r CreateRequest) error {
	differs := func(what string, have, want any) error {
		return fmt.Errorf("%w: volume %q has %s %v, asked for is %v", ErrExists, r.Name, what, have, want)
	}
	switch {
	case v.Name != r.Name:
		return differs("name", v.Name, r.Name)
	case v.Source != r.Source:
		return differs("source", v.Source, r.Source)
	case v.FSType != r.FSType:
		return differs("file system", orNone(v.FSType), orNone(r.FSType))
	case v.Parameters.Pool != r.Parameters.Pool:
		return differs("parameter pool", orNone(v.Parameters.Pool), orNone(r.Parameters.Pool))
	case v.Parameters.Mode != r.Parameters.Mode.orDefault():
		return differs("mode", v.Parameters.Mode, r.Parameters.Mode.orDefault())
	case v.Parameters.Tidy != r.Parameters.Tidy:
		return differs("parameter tidy", v.Parameters.Tidy, r.Parameters.Tidy)
	case v.Parameters.Provisioning != r.Parameters.Normal().Provisioning:
		return differs("provisioning", v.Parameters.Provisioning, r.Parameters.Normal().Provisioning)
	case !r.Capacity.Accepts(v.Sizing.Size):
		return differs("size", v.Sizing.Size, fmt.Sprintf("%d to %d (0: no bound)", r.Capacity.Required, r.Capacity.Limit))
	case !r.Placement.Allows(v.Node):
		return differs("node", v.Node, r.Placement.Requisite)
	}
	return nil
}

// Normal is the parameters with the defaults that a volume is recorded with.
func (p Parameters) Normal() Parameters {
	return Parameters{Pool: p.Pool, Mode: p.Mode.orDefault(), Tidy: p.Tidy, Provisioning: cmp.Or(p.Provisioning, ProvisionThin)}
}

func (m Mode) orDefault() Mode {
	if m == "" {
		return ModeROW
	}
	return m
}

// SnapshotRequest asks for a snapshot.
type SnapshotRequest struct {
	Name        string
	Source      VolumeID
	Consistency Consistency // "": ConsistencyCrash
}

// ID is the handle that the snapshot has or will have.
func (r SnapshotRequest) ID() SnapshotID { return SnapshotIDOf(r.Name) }

// Check validates what can be judged without looking at anything else.
func (r SnapshotRequest) Check() error { return checkName("snapshot", r.Name) }

// Snapshot is a snapshot as it is now. It outlives its source.
type Snapshot struct {
	ID        SnapshotID
	Name      string
	Source    VolumeID
	Sizing    Sizing // of its source when it was cut
	FSType    string // of its source
	Node      NodeID
	Pool      string
	CreatedAt time.Time // of the cut
	Group     GroupID   // whose cut made it, and with which it is deleted; zero: it has a cut of its own
}

// Satisfies says whether the snapshot is what the request asks for: nil, or ErrExists.
func (s Snapshot) Satisfies(r SnapshotRequest) error {
	if s.Name != r.Name || s.Source != r.Source {
		return fmt.Errorf("%w: snapshot %q is of volume %s, asked for is one of %s", ErrExists, r.Name, s.Source, r.Source)
	}
	if !s.Group.IsZero() {
		return fmt.Errorf("%w: snapshot %q is of group %s, asked for is one by itself", ErrExists, r.Name, s.Group)
	}
	return nil
}

// Accepts says whether the filter chooses the snapshot.
func (f SnapshotFilter) Accepts(s Snapshot) bool {
	return (f.ID.IsZero() || f.ID == s.ID) && (f.Source.IsZero() || f.Source == s.Source)
}

// Origin is what a service knows of the source of a new volume.
type Origin struct {
	Sizing Sizing
	FSType string
	Node   NodeID
	Pool   string
}

// CheckCopy refuses a copy that could not be used: its content is its source's, whatever file system is asked for.
func (r CreateRequest) CheckCopy(o Origin) error {
	if r.FSType != "" && o.FSType != "" && r.FSType != o.FSType {
		return fmt.Errorf("%w: %s holds %s, the copy is asked for with %s: use a storage class with csi.storage.k8s.io/fstype: %s",
			ErrInvalid, r.Source, o.FSType, r.FSType, o.FSType)
	}
	if p := r.Parameters.Pool; p != "" && p != o.Pool {
		return fmt.Errorf("%w: %s is in pool %s, the copy is asked for in pool %s: copies stay in their source's pool",
			ErrInvalid, r.Source, o.Pool, p)
	}
	if !r.Placement.Allows(o.Node) {
		return fmt.Errorf("%w: %s is on node %s, which the request excludes", ErrPlacement, r.Source, o.Node)
	}
	return nil
}

func orNone(s string) string {
	if s == "" {
		return "(none)"
	}
	return s
}

func checkName(kind, name string) error {
	switch {
	case name == "":
		return fmt.Errorf("%w: a %s needs a name", ErrInvalid, kind)
	case len(name) > MaxNameLen:
		return fmt.Errorf("%w: %s name of %d bytes, at most %d are possible", ErrInvalid, kind, len(name), MaxNameLen)
	case !utf8.ValidString(name) || strings.ContainsFunc(name, isControl):
		return fmt.Errorf("%w: %s name %q has control characters", ErrInvalid, kind, name)
	}
	return nil
}

// isControl names the characters that the CSI specification bans in names.
func isControl(r rune) bool {
	return r <= 0x08 || r == 0x0b || r == 0x0c || (r >= 0x0e && r <= 0x1f) || (r >= 0x7f && r <= 0x9f)
}

package driver

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/rowan-csi/rowan/pkg/apis/v1alpha1"
	"github.com/rowan-csi/rowan/pkg/volume"
)

const (
	// Name is the driver's name.
	Name = v1alpha1.DriverName
	// TopologyKey has a node's identity as its value.
	TopologyKey = v1alpha1.TopologyKey
)

// The keys of a storage class' parameters. Those of kubernetesPrefix are the side-cars' and say who asked; of these, only fsType means something
// here.
const (
	paramMode        = "mode"
	paramTidy        = "tidy"
	paramProvision   = "provisioning"
	kubernetesPrefix = "csi.storage.k8s.io/"
	paramFSType      = kubernetesPrefix + "fstype"
)

// PoolParam is the parameter of a storage class that chooses where its volumes go. Its value is volume.Parameters.Pool.
type PoolParam string

const (
	// ParamPool names a pool: of the one node that there is.
	ParamPool PoolParam = "pool"
	// ParamPoolSet names a PoolSet, which has one pool on each of its nodes.
	ParamPoolSet PoolParam = "poolSet"
)

// parseParameters reads a storage class' parameters.
func (s *Controller) parseParameters(params map[string]string) (p volume.Parameters, fsType string, err error) {
	for _, key := range slices.Sorted(maps.Keys(params)) {
		value := params[key]
		switch {
		case key == string(s.pool):
			p.Pool = value
		case key == paramMode:
			p.Mode = volume.Mode(value)
			if err := p.Mode.Check(); err != nil {
				return p, "", fmt.Errorf("parameter %s: %w", paramMode, err)
			}
		case key == paramTidy:
			if p.Tidy, err = parseTidy(value); err != nil {
				return p, "", err
			}
		case key == paramProvision:
			p.Provisioning = volume.Provisioning(value)
			if err := volume.CheckProvisioning(p.Provisioning); err != nil || value == "" {
				return p, "", fmt.Errorf("%w: parameter %s: %q: use %s or %s", volume.ErrInvalid, paramProvision, value, volume.ProvisionThin,
					volume.ProvisionThick)
			}
		case key == paramFSType:
			fsType = value
		case strings.HasPrefix(key, kubernetesPrefix):
		default:
			return p, "", fmt.Errorf("%w: unknown parameter %q: there are %s, %s, %s, %s and %s", volume.ErrInvalid, key, s.pool, paramMode, paramTidy,
				paramProvision, paramFSType)
		}
	}
	return p, fsType, nil
}

func parseTidy(value string) (bool, error) {
	if value != "true" && value != "false" {
		return false, fmt.Errorf("%w: parameter %s: %q: use true (scattered blocks are moved back into sequence in the background) or false",
			volume.ErrInvalid, paramTidy, value)
	}
	return value == "true", nil
}

// parseMutable reads the parameters of a VolumeAttributesClass.
func parseMutable(params map[string]string) (m volume.Mutable, err error) {
	for _, key := range slices.Sorted(maps.Keys(params)) {
		value := params[key]
		switch key {
		case paramMode:
			mode := volume.Mode(value)
			if err := mode.Check(); err != nil || value == "" {
				return m, fmt.Errorf("%w: parameter %s: %q: use %s or %s", volume.ErrInvalid, paramMode, value, volume.ModeROW, volume.ModeCOW)
			}
			m.Mode = &mode
		case paramTidy:
			tidy, err := parseTidy(value)
			if err != nil {
				return m, err
			}
			m.Tidy = &tidy
		default:
			return m, fmt.Errorf("%w: unknown parameter %q of a VolumeAttributesClass: there are %s and %s", volume.ErrInvalid, key, paramMode, paramTidy)
		}
	}
	return m, nil
}

// ParamConsistency is the parameter of a snapshot class that says what its snapshots are of: a volume.Consistency.
const ParamConsistency = "consistency"

// parseSnapshotParameters reads the parameters of a class of snapshots, which it names by its kind. others are known elsewhere.
func parseSnapshotParameters(kind string, params map[string]string, others ...string) (volume.Consistency, error) {
	for _, key := range slices.Sorted(maps.Keys(params)) {
		if key != ParamConsistency && !strings.HasPrefix(key, kubernetesPrefix) && !slices.Contains(others, key) {
			return "", fmt.Errorf("%w: unknown parameter %q of a %s: there is %s", volume.ErrInvalid, key, kind, ParamConsistency)
		}
	}
	return volume.ParseConsistency(params[ParamConsistency])
}

// use is how a volume is to be used: what a capability says.
type use struct {
	block        bool
	fsType       string // "" where the caller leaves it open, and for block
	flags        []string
	readOnly     bool
	singleWriter bool // at one target path only
}

// parseCapability reads one capability.
func parseCapability(c *csi.VolumeCapability) (u use, err error) {
	if c == nil {
		return u, fmt.Errorf("%w: volume capability is missing", volume.ErrInvalid)
	}
	switch mode := c.GetAccessMode().GetMode(); mode {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER, csi.VolumeCapability_AccessMode_SINGLE_NODE_MULTI_WRITER:
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER:
		u.singleWriter = true
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY:
		u.readOnly = true
	default:
		return u, fmt.Errorf("%w: access mode %s: a volume lives on one node: use ReadWriteOnce or ReadWriteOncePod", volume.ErrInvalid, mode)
	}
	switch t := c.GetAccessType().(type) {
	case *csi.VolumeCapability_Block:
		u.block = true
	case *csi.VolumeCapability_Mount:
		u.fsType, u.flags = t.Mount.GetFsType(), t.Mount.GetMountFlags()
		if t.Mount.GetVolumeMountGroup() != "" {
			return u, fmt.Errorf("%w: volume_mount_group is not supported: the kubelet applies fsGroup itself", volume.ErrInvalid)
		}
	default:
		return u, fmt.Errorf("%w: access type is missing from the volume capability: it is either block or mount", volume.ErrInvalid)
	}
	return u, volume.CheckFS(u.fsType)
}

// fileSystem is the file system that a volume of these capabilities will have, "" if it is for raw block alone. fallback is the class'.
func fileSystem(caps []*csi.VolumeCapability, fallback string) (string, error) {
	if len(caps) == 0 {
		return "", fmt.Errorf("%w: volume capabilities are missing", volume.ErrInvalid)
	}
	if err := volume.CheckFS(fallback); err != nil {
		return "", fmt.Errorf("parameter %s: %w", paramFSType, err)
	}
	chosen := ""
	for _, c := range caps {
		u, err := parseCapability(c)
		if err != nil {
			return "", err
		}
		if u.block {
			continue
		}
		fs := firstOf(u.fsType, fallback, volume.DefaultFS)
		if chosen != "" && chosen != fs {
			return "", fmt.Errorf("%w: the volume capabilities ask for %s and for %s", volume.ErrInvalid, chosen, fs)
		}
		chosen = fs
	}
	return chosen, nil
}

func parseRange(r *csi.CapacityRange) volume.Range {
	return volume.Range{Required: r.GetRequiredBytes(), Limit: r.GetLimitBytes()}
}

// parsePlacement reads where a volume may be. Preferences without a requisite do not bind.
func parsePlacement(r *csi.TopologyRequirement) volume.Placement {
	return volume.Placement{Constrained: len(r.GetRequisite()) > 0, Requisite: nodes(r.GetRequisite()), Preferred: nodes(r.GetPreferred())}
}

func nodes(ts []*csi.Topology) (ids []volume.NodeID) {
	for _, t := range ts {
		if id, ok := t.GetSegments()[TopologyKey]; ok {
			ids = append(ids, volume.NodeID(id))
		}
	}
	return ids
}

func topology(node volume.NodeID) *csi.Topology {
	return &csi.Topology{Segments: map[string]string{TopologyKey: string(node)}}
}

// parseSource reads what a volume is to be a copy of.
func parseSource(s *csi.VolumeContentSource) (src volume.Source, err error) {
	switch t := s.GetType().(type) {
	case nil:
		if s != nil {
			err = fmt.Errorf("%w: volume content source without a type: it is a snapshot or a volume", volume.ErrInvalid)
		}
	case *csi.VolumeContentSource_Snapshot:
		src.Snapshot, err = volume.ParseSnapshotID(t.Snapshot.GetSnapshotId())
	case *csi.VolumeContentSource_Volume:
		src.Volume, err = volume.ParseVolumeID(t.Volume.GetVolumeId())
	}
	return src, err
}

// volumeID reads a required volume_id.
func volumeID(s string) (volume.VolumeID, error) {
	if s == "" {
		return volume.VolumeID{}, missing("volume ID")
	}
	return volume.ParseVolumeID(s)
}

func missing(what string) error { return fmt.Errorf("%w: %s is missing", volume.ErrInvalid, what) }

func firstOf(s ...string) string {
	for _, v := range s {
		if v != "" {
			return v
		}
	}
	return ""
}

// maxPage is the most entries of one answer, so that it stays below gRPC's limit for a message.
const maxPage = 1000

// parsePage reads the position and size of a page of a list. A token is the handle of the last entry of the page before.
func parsePage[ID any](token string, entries int32, parse func(string) (ID, error)) (p volume.Page[ID], err error) {
	if entries < 0 {
		return p, fmt.Errorf("%w: max_entries %d must not be negative", volume.ErrInvalid, entries)
	}
	p.Max = maxPage
	if entries > 0 {
		p.Max = min(int(entries), maxPage)
	}
	if token == "" {
		return p, nil
	}
	if p.After, err = parse(token); err != nil {
		return p, fmt.Errorf("starting_token %q: %w", token, volume.ErrBadToken)
	}
	return p, nil
}

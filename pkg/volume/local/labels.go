package local

import (
	"strconv"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// The labels that objects have in the engine. They are part of what is stored: never rename one.
const (
	labelName      = "name"      // the name it was asked for under
	labelRequested = "requested" // volume.Sizing.Requested, in decimal bytes
	labelFSType    = "fsType"    // absent for raw block
	labelPool      = "param.pool"
	labelMode      = "param.mode"
	labelTidy      = "param.tidy" // "true", or absent
	labelFormat    = "format"     // volume.FormatState; absent for FormatNone
	labelOwner     = "owner"      // who stands for it elsewhere: the UID of its custom resource; absent where there is none
)

// VolumeSpec is what the engine is asked for to make a volume of that size. owner is whom it is made for, "" for nobody: OwnerOf tells of it later.
func VolumeSpec(r volume.CreateRequest, s volume.Sizing, owner string) (engine.VolumeSpec, error) {
	mode, err := engine.ParseMode(string(r.Parameters.Mode))
	if err != nil {
		return engine.VolumeSpec{}, translate(err)
	}
	spec := engine.VolumeSpec{
		Name: r.ID().String(), Size: s.Size, FromSnapshot: r.Source.Snapshot.String(), FromVolume: r.Source.Volume.String(), Mode: mode,
		Tidy: r.Parameters.Tidy, Labels: volumeLabels(r, s), Provisioning: engine.Provisioning(r.Parameters.Normal().Provisioning),
	}
	setUnlessEmpty(spec.Labels, labelOwner, owner)
	return spec, nil
}

// SnapshotSpec is what the engine is asked for to cut a snapshot of a volume of that size and file system.
func SnapshotSpec(r volume.SnapshotRequest, s volume.Sizing, fsType, owner string) engine.SnapshotSpec {
	labels := requestedLabel(s)
	labels[labelName] = r.Name
	setUnlessEmpty(labels, labelFSType, fsType)
	setUnlessEmpty(labels, labelOwner, owner)
	return engine.SnapshotSpec{Name: r.ID().String(), Volume: r.Source.String(), Labels: labels}
}

// OwnerOf is whom a volume or snapshot of these labels was made for; "" for nobody.
func OwnerOf(labels map[string]string) string { return labels[labelOwner] }

// SizingOf is the size of a volume or snapshot of these labels, and what was asked for, and the file system that it is for.
func SizingOf(size int64, labels map[string]string) (s volume.Sizing, fsType string) {
	fsType = labels[labelFSType]
	return sizing(size, labels, fsType), fsType
}

// RequestedLabels are the labels to set before a volume grows to that size. The label first: dying between the two leaves a request that does not fit
// the size yet, which is read as the size and written again by the retry. The other way round the retry would find nothing to do.
func RequestedLabels(s volume.Sizing) map[string]string { return requestedLabel(s) }

func volumeLabels(r volume.CreateRequest, s volume.Sizing) map[string]string {
	p := r.Parameters.Normal()
	labels := requestedLabel(s)
	labels[labelName], labels[labelMode] = r.Name, string(p.Mode)
	setUnlessEmpty(labels, labelFSType, r.FSType)
	setUnlessEmpty(labels, labelPool, p.Pool)
	if p.Tidy {
		labels[labelTidy] = "true"
	}
	return labels
}

func requestedLabel(s volume.Sizing) map[string]string {
	return map[string]string{labelRequested: strconv.FormatInt(s.Requested, 10)}
}

func setUnlessEmpty(labels map[string]string, key, value string) {
	if value != "" {
		labels[key] = value
	}
}

func (s *Service) toVolume(pool string, info engine.VolumeInfo, attached bool) volume.Volume {
	fs := info.Labels[labelFSType]
	v := volume.Volume{
		Name: info.Labels[labelName], Sizing: sizing(info.Size, info.Labels, fs), FSType: fs,
		// As asked for when it was made: the engine's own may have been changed since.
		Parameters: volume.Parameters{
			Pool: info.Labels[labelPool], Mode: volume.Mode(info.Labels[labelMode]), Tidy: info.Labels[labelTidy] == "true",
			Provisioning: volume.Provisioning(info.Provisioning),
		}.Normal(),
		Node: s.cfg.Node, Pool: pool, CreatedAt: info.CreatedAt, Format: volume.FormatState(info.Labels[labelFormat]),
		Written: info.Written, HasParent: info.HasParent, Attached: attached, Mapped: info.Mapped,
	}
	// Names that are no handles are those of sources that were not made here; the zero ID stands for them.
	v.ID, _ = volume.ParseVolumeID(info.Name)
	v.Source.Snapshot, _ = volume.ParseSnapshotID(info.FromSnapshot)
	v.Source.Volume, _ = volume.ParseVolumeID(info.FromVolume)
	return v
}

func (s *Service) toSnapshot(pool string, info engine.SnapshotInfo) volume.Snapshot {
	fs := info.Labels[labelFSType]
	snap := volume.Snapshot{
		Name: info.Labels[labelName], Sizing: sizing(info.Size, info.Labels, fs), FSType: fs, Node: s.cfg.Node, Pool: pool, CreatedAt: info.CreatedAt,
	}
	snap.ID, _ = volume.ParseSnapshotID(info.Name)
	snap.Source, _ = volume.ParseVolumeID(info.Volume)
	snap.Group, _ = volume.ParseGroupID(info.Group) // one of another name was cut by hand, and its snapshots are deleted as others are
	return snap
}

// sizing trusts the engine for the size. A label that is missing, or ahead of the size because a growth was not finished, gives way to it.
func sizing(size int64, labels map[string]string, fsType string) volume.Sizing {
	requested, err := strconv.ParseInt(labels[labelRequested], 10, 64)
	if err != nil || requested <= 0 || volume.Round(requested, fsType) > size {
		requested = size
	}
	return volume.Sizing{Size: size, Requested: requested}
}

package driver

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"k8s.io/klog/v2"

	"github.com/rowan-csi/rowan/pkg/driver/mount"
	"github.com/rowan-csi/rowan/pkg/volume"
)

// undoTimeout bounds the clean-up after a failed call, whose own time may be up.
const undoTimeout = 10 * time.Second

// NodeStageVolume attaches the volume and, unless it is for raw block, mounts its file system at the staging path: made before if it never had one,
// grown if the device has become larger.
func (s *Node) NodeStageVolume(ctx context.Context, req *csi.NodeStageVolumeRequest) (*csi.NodeStageVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, missing("volume ID")
	}
	if req.GetStagingTargetPath() == "" {
		return nil, missing("staging target path")
	}
	u, err := parseCapability(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	id, err := volume.ParseVolumeID(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	release, err := s.locks.Lock(id.String())
	if err != nil {
		return nil, err
	}
	defer release()
	// A read-only file system has a writable device all the same: its journal may have to be replayed.
	device, err := s.volumes.Attach(ctx, id, u.block && u.readOnly)
	if err != nil {
		return nil, fmt.Errorf("stage volume %s: attach: %w", id, err)
	}
	if u.block {
		// Nothing is undone here when it fails: a raw block volume that was staged before looks no different from one that was attached just now.
		err = s.stageBlock(ctx, id)
	} else if err = s.stageFileSystem(ctx, id, device, req.GetStagingTargetPath(), u); err != nil {
		s.undoAttach(ctx, id, device)
	}
	if err != nil {
		return nil, fmt.Errorf("stage volume %s: %w", id, err)
	}
	return &csi.NodeStageVolumeResponse{}, nil
}

// undoAttach takes the device away after a failed call, unless something uses it: the kubelet does not unstage what was never staged, and the volume
// could not be deleted then.
func (s *Node) undoAttach(ctx context.Context, id volume.VolumeID, device string) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	targets, err := s.mounter.Targets(device)
	if err == nil && len(targets) == 0 {
		err = s.volumes.Detach(ctx, id)
	}
	if err != nil {
		klog.FromContext(ctx).Info("Device stays after a failed stage", "device", device, "reason", err.Error())
	}
}

// stageBlock forgets that a file system was being made: from now on the content is the user's.
func (s *Node) stageBlock(ctx context.Context, id volume.VolumeID) error {
	v, err := s.volumes.Get(ctx, id)
	if err != nil || v.Format != volume.FormatStarted {
		return err
	}
	return s.volumes.MarkFormat(ctx, id, volume.FormatNone)
}

func (s *Node) stageFileSystem(ctx context.Context, id volume.VolumeID, device, staging string, u use) error {
	// After attaching, so that what is known of the volume is of the device in hand.
	v, err := s.volumes.Get(ctx, id)
	if err != nil {
		return err
	}
	p, err := s.mounter.Lookup(staging, device)
	if err != nil {
		return err
	}
	readOnly := u.readOnly || slices.Contains(u.flags, "ro")
	if p.Mounted {
		if !p.Same || u.fsType != "" && u.fsType != p.FSType || readOnly != p.ReadOnly {
			return fmt.Errorf("%w: %s shows this volume: %t, file system: %q, read-only: %t; unstage it first",
				volume.ErrMismatch, staging, p.Same, p.FSType, p.ReadOnly)
		}
	} else {
		if p.FSType, err = s.ensureFileSystem(ctx, v, device, u.fsType); err != nil {
			return err
		}
		if err := s.mount(ctx, v, device, staging, p.FSType, readOnly, u.flags); err != nil {
			return err
		}
	}
	if readOnly {
		return nil
	}
	// Also when it was mounted already: the call before may have died between the two.
	err = s.grow(ctx, v, device, staging, p.FSType)
	if errors.Is(err, mount.ErrMounted) {
		err = s.growUnmounted(ctx, v, device, staging, p.FSType, u.flags)
	}
	return err
}

// ensureFileSystem answers what file system is on the device, making it first where none ever was. wanted "" leaves the choice to the volume.
func (s *Node) ensureFileSystem(ctx context.Context, v volume.Volume, device, wanted string) (string, error) {
	found, err := s.mounter.Detect(ctx, device)
	if err != nil {
		return "", err
	}
	unfinished := v.Format == volume.FormatStarted
	switch {
	case v.MayFormat() && (found == "" || unfinished):
		fsType := firstOf(wanted, v.FSType, volume.DefaultFS)
		return fsType, s.makeFileSystem(ctx, v, device, fsType)
	case found == "" && v.HasParent:
		return "", fmt.Errorf("%w: no file system is found on it, and none is made, because it began as a copy of %s: restore from a source that has one",
			volume.ErrContent, v.Source)
	case found == "":
		return "", fmt.Errorf("%w: no file system is found on it, and none is made, because it was written to: "+
			"its file system is damaged, or it was used as a raw block volume; restore a snapshot", volume.ErrContent)
	case wanted != "" && wanted != found:
		return "", fmt.Errorf("%w: it holds %q, asked for is %s: use a storage class with %s of what it holds",
			volume.ErrContent, found, wanted, paramFSType)
	}
	if err := volume.CheckFS(found); err != nil {
		return "", fmt.Errorf("%w: it holds %q, which is not %s or %s", volume.ErrContent, found, volume.FSExt4, volume.FSXFS)
	}
	return found, nil
}

// makeFileSystem notes the beginning and the end, durably, so that a maker that died between them is known to have left nothing of value.
func (s *Node) makeFileSystem(ctx context.Context, v volume.Volume, device, fsType string) error {
	klog.FromContext(ctx).Info("Making file system", "device", device, "fsType", fsType, "again", v.Format == volume.FormatStarted)
	if err := s.volumes.MarkFormat(ctx, v.ID, volume.FormatStarted); err != nil {
		return fmt.Errorf("note that a file system is being made: %w", err)
	}
	if err := s.mounter.Format(ctx, device, fsType, !v.Written); err != nil {
		return err
	}
	if err := s.volumes.MarkFormat(ctx, v.ID, volume.FormatDone); err != nil {
		return fmt.Errorf("note that the file system is made: %w", err)
	}
	return nil
}

func (s *Node) mount(ctx context.Context, v volume.Volume, device, staging, fsType string, readOnly bool, flags []string) error {
	options := slices.Clone(flags)
	if readOnly && !slices.Contains(options, "ro") {
		options = append(options, "ro")
	}
	if fsType == volume.FSXFS && v.HasParent && !slices.Contains(options, "nouuid") {
		options = append(options, "nouuid") // the UUID is its source's, which may be mounted here
	}
	targets, err := s.mounter.Targets(device)
	if err != nil {
		return err
	}
	if len(targets) == 0 {
		if err := s.mounter.Check(ctx, device, fsType); err != nil {
			return err
		}
	}
	return s.mounter.Mount(ctx, device, staging, fsType, options)
}

// growUnmounted is for where the kernel does not let this process grow a mounted ext4. Nothing else shows the volume while it is being staged; where
// something does, the file system grows when it is staged next.
func (s *Node) growUnmounted(ctx context.Context, v volume.Volume, device, staging, fsType string, flags []string) error {
	targets, err := s.mounter.Targets(device)
	if err != nil || len(targets) > 1 {
		return err
	}
	if err := s.mounter.Unmount(ctx, staging); err != nil {
		return err
	}
	if err := s.mounter.GrowUnmounted(ctx, device, fsType); err != nil {
		return err
	}
	return s.mount(ctx, v, device, staging, fsType, false, flags)
}

// NodeUnstageVolume undoes NodeStageVolume. A volume that is gone has nothing left to undo.
func (s *Node) NodeUnstageVolume(ctx context.Context, req *csi.NodeUnstageVolumeRequest) (*csi.NodeUnstageVolumeResponse, error) {
	if req.GetVolumeId() == "" {
		return nil, missing("volume ID")
	}
	if req.GetStagingTargetPath() == "" {
		return nil, missing("staging target path")
	}
	release, err := s.locks.Lock(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	defer release()
	if err := s.mounter.Unmount(ctx, req.GetStagingTargetPath()); err != nil {
		return nil, fmt.Errorf("unstage volume %s: %w", req.GetVolumeId(), err)
	}
	id, err := volume.ParseVolumeID(req.GetVolumeId())
	if err == nil {
		err = s.detach(ctx, id)
	}
	if err != nil && !errors.Is(err, volume.ErrNotFound) && !errors.Is(err, volume.ErrMalformedID) {
		return nil, fmt.Errorf("unstage volume %s: %w", id, err)
	}
	return &csi.NodeUnstageVolumeResponse{}, nil
}

// detach takes the device away once nothing shows it any more. Where there is none, a detach that failed half-way may have to be finished.
func (s *Node) detach(ctx context.Context, id volume.VolumeID) error {
	device, err := s.volumes.Device(ctx, id)
	if errors.Is(err, volume.ErrNotAttached) {
		return s.volumes.Detach(ctx, id)
	}
	if err != nil {
		return err
	}
	targets, err := s.mounter.Targets(device)
	if err != nil {
		return err
	}
	if len(targets) > 0 {
		return fmt.Errorf("%w: device %s is still mounted at %q: unpublish these first", volume.ErrInUse, device, targets)
	}
	return s.volumes.Detach(ctx, id)
}

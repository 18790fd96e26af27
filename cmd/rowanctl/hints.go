package main

import (
	"errors"
	"io/fs"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
)

// hints say what to do about an error; the first that fits is printed.
var hints = []struct {
	is   error
	hint string
}{
	{rpc.ErrUnreachable, "is rowan-engine running on this node, and are you root? Name its socket with --socket"},
	{engine.ErrLost, "if the ring's folder was emptied, open the pool without those writes: rowanctl pool open NAME --accept-loss"},
	{engine.ErrLocked, "find the other engine that has the pool open (fuser on the pool's folder) and stop it"},
	{engine.ErrIncompatible, "install a rowan-engine that is at least as new as the one that wrote the pool"},
	{engine.ErrFailed, "the pool can still be read: copy what you need, then restart the machine and run rowanctl pool check"},
	{engine.ErrCorrupt, "do not write to the pool; rowanctl pool open NAME --read-only and rowanctl pool check tell how far the damage goes"},
	{engine.ErrNotBlank, "if what is on it may be destroyed, add --wipe"},
	{engine.ErrMemberMissing, "bring the member back where it was, or name its new folder or device: rowanctl pool import --dir FOLDER"},
	{engine.ErrForeign, "choose another folder or device, or open the pool that is there: rowanctl pool open --member PATH"},
	{engine.ErrNoSpace, "delete volumes or snapshots (rowanctl snapshot show tells what deleting one would free), or rowanctl pool grow"},
	{engine.ErrShrink, "make a smaller one and copy the files"},
	{engine.ErrNotDescendant, "make a new volume of that snapshot: rowanctl snapshot restore SNAPSHOT VOLUME"},
	{engine.ErrUnrelated, "a difference is known between snapshots and volumes that descend from one another; snapshot allocated lists all that one has"},
	{engine.ErrInUse, "unmount it, then rowanctl volume detach NAME"},
	{engine.ErrExists, "choose another name, or look at what has it with show"},
	{host.ErrNotOpen, "rowanctl pool show tells why, rowanctl pool open tries again"},
	{host.ErrStopping, "wait until the next engine has started"},
	{engine.ErrNotFound, "rowanctl pool list, volume list and snapshot list show what there is"},
	{engine.ErrBusy, "nothing was changed; try again"},
	{errDamagedData, "docs/damaged-data.md says what is affected and what to do"},
	{fs.ErrPermission, "run it as root"},
}

func hint(err error) string {
	for _, h := range hints {
		if errors.Is(err, h.is) {
			return h.hint
		}
	}
	return ""
}

package engine

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine/format"
)

// The labels in which a volume's record says that it is held, and which holder rolled it back last. They are part of what is stored: never rename one.
const (
	labelHoldBy     = "engine.hold.by"
	labelHoldSince  = "engine.hold.since"
	labelRollbackBy = "engine.rollback.by"
	labelRollbackTo = "engine.rollback.to"
	labelRollbackAt = "engine.rollback.at"
)

// maxHolder is the most bytes of a holder's name.
const maxHolder = 128

// Hold says who keeps a volume from being opened.
type Hold struct {
	By    string // "": nobody
	Since time.Time
}

// Rollback is the last rollback that a holder asked for.
type Rollback struct {
	By string // the holder; "": there was none
	To string // the snapshot
	At time.Time
}

// Hold of the volume.
func (v VolumeInfo) Hold() Hold {
	return Hold{v.Labels[labelHoldBy], timeOfLabel(v.Labels[labelHoldSince])}
}

// RolledBack is the last rollback of the volume that a holder asked for.
func (v VolumeInfo) RolledBack() Rollback {
	return Rollback{v.Labels[labelRollbackBy], v.Labels[labelRollbackTo], timeOfLabel(v.Labels[labelRollbackAt])}
}

func timeOfLabel(s string) time.Time {
	t, _ := time.Parse(time.RFC3339Nano, s) // "" and what somebody wrote by hand are the zero time
	return t
}

// Holding is what a volume's labels are while holder holds it: all that HoldVolume sets.
func Holding(holder string, since time.Time) map[string]string {
	return map[string]string{labelHoldBy: holder, labelHoldSince: since.UTC().Truncate(time.Microsecond).Format(time.RFC3339Nano)}
}

// releasing and rolled are what the labels lose and gain; an empty value removes its key.
func releasing() map[string]string { return map[string]string{labelHoldBy: "", labelHoldSince: ""} }

func rolled(holder, snapshot string, at time.Time) map[string]string {
	return map[string]string{
		labelHoldBy: "", labelHoldSince: "", labelRollbackBy: holder, labelRollbackTo: snapshot,
		labelRollbackAt: at.UTC().Truncate(time.Microsecond).Format(time.RFC3339Nano),
	}
}

func setLabels(rec *format.Volume, set map[string]string) error {
	rec.Labels = maps.Clone(rec.Labels)
	if rec.Labels == nil {
		rec.Labels = map[string]string{}
	}
	for k, v := range set {
		if v == "" {
			delete(rec.Labels, k)
		} else {
			rec.Labels[k] = v
		}
	}
	return checkLabels(rec.Labels)
}

// heldBy refuses what a holder's volume does not allow to anybody else.
func heldBy(v *volume, holder string) error {
	if by := v.rec.Labels[labelHoldBy]; by != "" && by != holder {
		return fmt.Errorf("volume %q: %w: it is held by %s, which rolls it back or lets it go", v.rec.Name, ErrBusy, by)
	}
	return nil
}

// HoldVolume keeps a volume that is not open from being opened until its holder rolled it back or let it go, whatever becomes of this process. Asking
// again changes nothing. A holder that rolled the volume back already gets no second hold: RolledBack of the answer says so.
//
// Promise: what the volume shows from Hold.Since on stays what it is until then; a snapshot cut meanwhile is exactly what a rollback replaces.
func (p *Pool) HoldVolume(ctx context.Context, name, holder string) (VolumeInfo, error) {
	if holder == "" || len(holder) > maxHolder {
		return VolumeInfo{}, fmt.Errorf("hold volume %q: %w: the holder's name has %d bytes, want 1 to %d", name, ErrInvalid, len(holder), maxHolder)
	}
	p.ops.Lock()
	defer p.ops.Unlock()
	v, err := p.closedVolume(name)
	if err == nil {
		err = heldBy(v, holder)
	}
	if err != nil {
		return VolumeInfo{}, err
	}
	if v.rec.Labels[labelHoldBy] == holder || v.rec.Labels[labelRollbackBy] == holder {
		return p.volumeInfo(v), nil
	}
	return p.commitChange(v, func(rec *format.Volume) error { return setLabels(rec, Holding(holder, time.Now())) }, nil)
}

// ReleaseVolume lets a volume be opened again. It is no error where nobody holds it.
func (p *Pool) ReleaseVolume(ctx context.Context, name, holder string) (VolumeInfo, error) {
	p.ops.Lock()
	defer p.ops.Unlock()
	v, err := p.catalogue.volume(name)
	if err == nil {
		err = p.refusal()
	}
	if err == nil {
		err = heldBy(v, holder)
	}
	if err != nil {
		return VolumeInfo{}, err
	}
	if v.rec.Labels[labelHoldBy] == "" {
		return p.volumeInfo(v), nil
	}
	return p.commitChange(v, func(rec *format.Volume) error { return setLabels(rec, releasing()) }, nil)
}

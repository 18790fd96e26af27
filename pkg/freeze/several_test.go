package freeze

import (
	"context"
	"errors"
	"os"
	"strings"
	"testing"
	"time"
)

// newDisks is a disk of each file system, and a freezer that knows them all.
func newDisks(t *testing.T) (all []*disk, devices []string, f *Freezer) {
	for _, fsType := range fileSystems {
		d := newDisk(t, fsType)
		all, devices = append(all, d), append(devices, d.device)
		d.notes = all[0].notes
	}
	f = all[0].freezer()
	f.Mounts = func(device string) ([]string, error) {
		for _, d := range all {
			if d.device == device {
				return []string{d.dir}, nil
			}
		}
		return nil, nil
	}
	return all, devices, f
}

// Several file systems are frozen at one time, and thawed together.
func TestFreezeSeveral(t *testing.T) {
	all, devices, f := newDisks(t)
	set, err := f.Devices(t.Context(), devices)
	must(t, err)
	if left := time.Until(set.Until()); left <= 0 || left > Limit || set.Until().After(set[0].Until()) || set.Until().After(set[1].Until()) {
		t.Errorf("%s are left", left)
	}
	var writes []<-chan error
	for _, d := range all {
		writes = append(writes, d.written("later"))
		d.frozen(writes[len(writes)-1])
	}
	must(t, set.Thaw())
	for i, d := range all {
		d.thawed(writes[i], time.Second)
	}
	if left, err := os.ReadDir(f.Notes); err != nil || len(left) != 0 {
		t.Errorf("notes are left: %v, %v", left, err)
	}
}

// Where one cannot be frozen none stays frozen.
func TestFreezeAllOrNone(t *testing.T) {
	all, devices, f := newDisks(t)
	all[1].run("fsfreeze", "-f", all[1].dir)
	_, err := f.Devices(t.Context(), devices)
	all[1].run("fsfreeze", "-u", all[1].dir)
	if !errors.Is(err, ErrFrozen) || !strings.Contains(err.Error(), all[1].dir) {
		t.Errorf("one is frozen by another: %v", err)
	}
	if _, err := f.Devices(t.Context(), append(devices, "/dev/none")); !errors.Is(err, ErrNotMounted) {
		t.Errorf("one is not mounted: %v", err)
	}
	for _, d := range all {
		d.thawed(d.written("x"), time.Second)
	}
	if left, err := os.ReadDir(f.Notes); err != nil || len(left) != 0 {
		t.Errorf("notes are left: %v, %v", left, err)
	}
}

// The limit is one for all: what hangs is thawed by the guard, and whoever froze is told of each.
func TestGuardThawsSeveral(t *testing.T) {
	all, devices, f := newDisks(t)
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Guard(ctx, f.Notes, nil, func(_ int, err error) {
			if err != nil {
				t.Error(err)
			}
		})
	}()
	defer func() { cancel(); <-ended }()
	begun := time.Now()
	set, err := f.Devices(t.Context(), devices)
	must(t, err)
	for i, d := range all {
		d.thawed(d.written("x"), Limit+time.Second-time.Since(begun))
		if err := set[i].Thaw(); !errors.Is(err, ErrThawed) {
			t.Errorf("%s: it does not know: %v", d.dir, err)
		}
	}
}

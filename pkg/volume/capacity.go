package volume

import "fmt"

// Admission says how far a pool's space may be promised.
type Admission struct {
	// Overcommit is the sum of the volumes' sizes that a pool takes, as a multiple of its own size.
	Overcommit float64
	// RefuseAt is the part of a pool's space, from 0 to 1, from which on it takes no new volume, growth or snapshot.
	RefuseAt float64
}

// DefaultAdmission promises twice the space, until a twentieth is left.
var DefaultAdmission = Admission{Overcommit: 2, RefuseAt: 0.95}

// Space is a pool's space, in bytes.
type Space struct {
	Pool        string
	Size        int64 // data the pool may hold
	Used        int64 // data it holds
	Provisioned int64 // the sum of the volumes' sizes
}

// Capacity is the space left for new volumes, in bytes.
type Capacity struct {
	Available int64 // rounded down to CapacityUnit
	MinVolume int64
	MaxVolume int64 // the largest volume that would be admitted now, rounded down to SizeUnit
}

// CapacityUnit is what available capacity is rounded down to: it is published in an object that is written again whenever it changes.
const CapacityUnit = 1 << 30

// Capacity is what Admit admits.
func (a Admission) Capacity(s Space, fsType string) Capacity {
	left := a.left(s)
	return Capacity{
		Available: left / CapacityUnit * CapacityUnit,
		MinVolume: MinSize(fsType),
		MaxVolume: min(left/SizeUnit*SizeUnit, MaxSize),
	}
}

// Admit refuses more bytes of volumes than the pool may promise. bytes is the size of a new volume, copies included, or what a volume grows by.
func (a Admission) Admit(s Space, bytes int64) error {
	if err := a.AdmitSnapshot(s); err != nil {
		return err
	}
	if left := a.left(s); bytes > left {
		return fmt.Errorf("%w: pool %s can promise %d more bytes (%.2g times its size, %d bytes promised), %d are needed: delete volumes or grow the pool",
			ErrNoSpace, s.Pool, left, a.Overcommit, s.Provisioned, bytes)
	}
	return nil
}

// AdmitSnapshot refuses a snapshot in a pool that is nearly full: from then on every overwrite takes new space.
func (a Admission) AdmitSnapshot(s Space) error {
	if a.full(s) {
		return fmt.Errorf("%w: pool %s holds %d of %d bytes, over its mark of %.0f %%: delete snapshots or volumes, or grow the pool",
			ErrNoSpace, s.Pool, s.Used, s.Size, a.RefuseAt*100)
	}
	return nil
}

func (a Admission) full(s Space) bool { return float64(s.Used) >= a.RefuseAt*float64(s.Size) }

func (a Admission) left(s Space) int64 {
	if a.full(s) {
		return 0
	}
	return max(0, int64(a.Overcommit*float64(s.Size))-s.Provisioned)
}

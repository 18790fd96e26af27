package volume

import "fmt"

// Admission says how far a pool's space may be promised.
type Admission struct {
	// Overcommit is the sum of the volumes' sizes that a pool takes, as a multiple of its own size.
	Overcommit float64
}

// DefaultAdmission promises twice the space.
var DefaultAdmission = Admission{Overcommit: 2}

// Space is a pool's space, in bytes.
type Space struct {
	Pool        string
	Size        int64 // data the pool may hold
	Used        int64 // data it holds
	Provisioned int64 // the sum of the volumes' sizes
	Thick       int64 // the part of Provisioned that is of thick volumes: it is taken, written or not
	Available   int64 // what can be written now, or be set aside for a thick volume
	Scarce      bool  // over the watermark from which on the pool takes no new volume, growth or snapshot
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
func (a Admission) Capacity(s Space, fsType string, kind Provisioning) Capacity {
	left := a.left(s, kind)
	return Capacity{
		Available: left / CapacityUnit * CapacityUnit,
		MinVolume: MinSize(fsType),
		MaxVolume: min(left/SizeUnit*SizeUnit, MaxSize),
	}
}

// Admit refuses more bytes of volumes than the pool may promise. bytes is the size of a new volume, copies included, or what a volume grows by.
func (a Admission) Admit(s Space, bytes int64, kind Provisioning) error {
	if err := a.AdmitSnapshot(s); err != nil {
		return err
	}
	if left := a.left(s, kind); bytes > left {
		return fmt.Errorf("%w: pool %s can promise %d more bytes (%.2g times its size, %d bytes promised), %d are needed: delete volumes or grow the pool",
			ErrNoSpace, s.Pool, left, a.Overcommit, s.Provisioned, bytes)
	}
	return nil
}

// AdmitSnapshot refuses a snapshot in a pool that is nearly full: from then on every overwrite takes new space.
func (a Admission) AdmitSnapshot(s Space) error {
	if s.Scarce {
		// Without figures: what is really in use is not known to everybody who knows that much.
		return fmt.Errorf("%w: pool %s is nearly full and takes no new volumes and snapshots: delete snapshots or volumes, or grow the pool", ErrNoSpace, s.Pool)
	}
	return nil
}

// left is how much more may be promised. What is thick is no promise but space that is gone; only the rest is promised more than once. A new thick
// volume also needs to be there.
func (a Admission) left(s Space, kind Provisioning) int64 {
	if s.Scarce {
		return 0
	}
	left := max(0, int64(a.Overcommit*float64(s.Size-s.Thick))-(s.Provisioned-s.Thick))
	if kind == ProvisionThick {
		left = min(left, s.Available)
	}
	return left
}

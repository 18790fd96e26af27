package engine

import (
	"github.com/rowan-csi/rowan/pkg/engine/member"
	"github.com/rowan-csi/rowan/pkg/engine/metafs"
)

// MetadataCounts tells the bytes that the pool's metadata took since it was opened, by what they were for.
func (p *Pool) MetadataCounts() metafs.Counts { return p.store.db.counts() }

// RingUse tells how many of the ring's entries are taken, and how many it has. From half of them on the pool commits.
func (p *Pool) RingUse() (used, entries int) {
	if p.ring == nil { // open for looking only
		return 0, 0
	}
	return p.ring.Used(), p.ring.Cap()
}

// DataCounts tells the work done on the pool's segments since it was opened, for all volumes and for writing ahead.
func (p *Pool) DataCounts() member.Counters {
	var sum member.Counters
	for _, m := range p.members.table.Load().present() {
		c := m.Counters()
		sum.Reads, sum.ReadBytes = sum.Reads+c.Reads, sum.ReadBytes+c.ReadBytes
		sum.Writes, sum.WriteBytes = sum.Writes+c.Writes, sum.WriteBytes+c.WriteBytes
		sum.PrewrittenBytes, sum.Flushes = sum.PrewrittenBytes+c.PrewrittenBytes, sum.Flushes+c.Flushes
	}
	return sum
}

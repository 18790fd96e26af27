package metafs

import "sync/atomic"

// Stats counts bytes handed to the file system, by what they are for.
type Stats struct {
	LogPayload  atomic.Uint64 // records, as Pebble wrote them
	LogPadding  atomic.Uint64 // what whole blocks add to that: zeroes behind the end, and the last block's bytes once more
	LogPrewrite atomic.Uint64 // zeroes written before a log file is used
	LogWrites   atomic.Uint64 // durable writes: calls, not bytes
	Flush       atomic.Uint64 // tables written from memory
	Compaction  atomic.Uint64 // tables written from tables
	Manifest    atomic.Uint64
	Other       atomic.Uint64 // options, markers
}

// Counts is a copy of Stats.
type Counts struct {
	LogPayload, LogPadding, LogPrewrite, LogWrites, Flush, Compaction, Manifest, Other uint64
}

// Counts reads all counters, each by itself.
func (s *Stats) Counts() Counts {
	return Counts{
		LogPayload: s.LogPayload.Load(), LogPadding: s.LogPadding.Load(), LogPrewrite: s.LogPrewrite.Load(), LogWrites: s.LogWrites.Load(),
		Flush: s.Flush.Load(), Compaction: s.Compaction.Load(), Manifest: s.Manifest.Load(), Other: s.Other.Load(),
	}
}

// Bytes is what the metadata cost, without padding and prewriting, which cost no more writes of the device than the payload does by itself.
func (c Counts) Bytes() uint64 { return c.LogPayload + c.Flush + c.Compaction + c.Manifest + c.Other }

// Sub is what was added since an earlier reading.
func (c Counts) Sub(earlier Counts) Counts {
	return Counts{
		LogPayload: c.LogPayload - earlier.LogPayload, LogPadding: c.LogPadding - earlier.LogPadding, LogPrewrite: c.LogPrewrite - earlier.LogPrewrite,
		LogWrites: c.LogWrites - earlier.LogWrites, Flush: c.Flush - earlier.Flush, Compaction: c.Compaction - earlier.Compaction,
		Manifest: c.Manifest - earlier.Manifest, Other: c.Other - earlier.Other,
	}
}

// Add is what both counted.
func (c Counts) Add(other Counts) Counts {
	return Counts{
		LogPayload: c.LogPayload + other.LogPayload, LogPadding: c.LogPadding + other.LogPadding, LogPrewrite: c.LogPrewrite + other.LogPrewrite,
		LogWrites: c.LogWrites + other.LogWrites, Flush: c.Flush + other.Flush, Compaction: c.Compaction + other.Compaction,
		Manifest: c.Manifest + other.Manifest, Other: c.Other + other.Other,
	}
}

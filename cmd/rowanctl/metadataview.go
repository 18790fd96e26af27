package main

import (
	"fmt"

	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/metafs"
)

// metadataView is what a pool's metadata wrote since the pool was opened, in bytes.
type metadataView struct {
	Log        uint64 `json:"log"`
	LogPadding uint64 `json:"logPadding"`
	LogZeroes  uint64 `json:"logZeroesAhead"`
	LogWrites  uint64 `json:"logWrites"` // a number
	Tables     uint64 `json:"tables"`
	Compaction uint64 `json:"compaction"`
	Other      uint64 `json:"other"`
	// For each new block that the volumes attached now were given; absent where there is none.
	PerNewBlock        *float64 `json:"perNewBlock,omitempty"`
	PaddingPerNewBlock *float64 `json:"paddingPerNewBlock,omitempty"`
}

// viewMetadata sets the metadata against what made it: first writes, of all volumes, because commits are the pool's.
func viewMetadata(c metafs.Counts, volumes []engine.VolumeInfo) metadataView {
	var blocks uint64
	for _, v := range volumes {
		if v.Counters != nil {
			blocks += v.Counters.FirstWriteBytes / engine.BlockSize
		}
	}
	return metadataView{
		Log: c.LogPayload, LogPadding: c.LogPadding, LogZeroes: c.LogPrewrite, LogWrites: c.LogWrites, Tables: c.Flush, Compaction: c.Compaction,
		Other: c.Manifest + c.Other, PerNewBlock: ratio(c.Bytes(), blocks), PaddingPerNewBlock: ratio(c.LogPadding, blocks),
	}
}

func (m metadataView) fields() []field {
	size := func(n uint64) string { return bytesize.Format(int64(n)) }
	return []field{
		{"Metadata written", fmt.Sprintf("log %s in %d writes, tables %s, compaction %s, other %s",
			size(m.Log), m.LogWrites, size(m.Tables), size(m.Compaction), size(m.Other))},
		{"Log padding", fmt.Sprintf("%s, and %s of zeroes written ahead", size(m.LogPadding), size(m.LogZeroes))},
	}
}

// perBlock is empty where there were no new blocks.
func (m metadataView) perBlock() string {
	if m.PerNewBlock == nil {
		return ""
	}
	return fmt.Sprintf("%.1f bytes for each new block of the pool's attached volumes, and %.1f of log padding", *m.PerNewBlock, *m.PaddingPerNewBlock)
}

package engine

import (
	"fmt"
	"slices"

	"github.com/rowan-csi/rowan/pkg/engine/runs"
)

// named is a snapshot or a volume with what its map goes by.
type named struct {
	line     *lineage
	snapshot ScrubSnapshot
	volume   string // of a volume
}

func (n named) String() string {
	if n.volume != "" {
		return fmt.Sprintf("volume %q", n.volume)
	}
	return fmt.Sprintf("snapshot %q of volume %q", n.snapshot.Name, n.snapshot.Volume)
}

// namesIn lists the snapshots of a family, oldest first, then its volumes. mu is held, or nobody changes the catalogue.
func (c *catalogue) namesIn(family uint32) (all []named) {
	for _, s := range c.sortedSnapshots() {
		if l := c.layers[s.rec.Layer]; l != nil && l.rec.Family == family {
			all = append(all, named{line: c.lineageOf(l), snapshot: ScrubSnapshot{s.rec.Name, s.rec.VolumeName}})
		}
	}
	for _, v := range c.sortedVolumes() {
		if l := c.layers[v.rec.Layer]; l != nil && l.rec.Family == family {
			all = append(all, named{line: c.lineageOf(l), volume: v.rec.Name})
		}
	}
	return all
}

// shows tells whether some of n blocks of a page, from one on, are a generation's in its map.
func (n named) shows(r reader, gen uint64, page uint32, off, blocks int) (bool, error) {
	if !n.line.contains(gen) {
		return false, nil
	}
	list, err := readPage(r, n.line, page, nil)
	return slices.ContainsFunc(list, func(e runs.Entry) bool { return e.Gen() == gen && e.Off() < off+blocks && off < e.End() }), err
}

package engine

import "testing"

func TestPageSet(t *testing.T) {
	s := pageSet{}
	pages := []uint32{0, 1, 63, 64, leafPages - 1, leafPages, 1<<24 - 1}
	for _, p := range pages {
		if s.has(p) {
			t.Errorf("page %d is in an empty set", p)
		}
		s.add(p)
	}
	for _, p := range pages {
		if !s.has(p) || s.has(p+2) {
			t.Errorf("page %d: has %v, its second neighbour %v", p, s.has(p), s.has(p+2))
		}
	}
	s.remove(64)
	if s.has(64) || !s.has(63) {
		t.Errorf("after a removal: %v, its neighbour %v", s.has(64), s.has(63))
	}
}

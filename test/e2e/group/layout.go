package group

import "fmt"

// Layout is where a writer's records go: to the volumes in turn, on each to its slots in turn, over and over. Records count from 1.
type Layout struct{ Volumes, Slots int }

// At is where a record goes.
func (l Layout) At(record uint64) (volume, slot int) {
	n := record - 1
	return int(n % uint64(l.Volumes)), int(n / uint64(l.Volumes) % uint64(l.Slots))
}

// Holds is the record that a slot holds when the first n were written, 0 if none.
func (l Layout) Holds(n uint64, volume, slot int) uint64 {
	if n <= uint64(volume) {
		return 0
	}
	turns := (n - 1 - uint64(volume)) / uint64(l.Volumes) // of this volume, but for the first
	slots := uint64(l.Slots)
	back := (turns%slots + slots - uint64(slot)) % slots
	if back > turns {
		return 0
	}
	return (turns-back)*uint64(l.Volumes) + uint64(volume) + 1
}

// Prefix is how many records were written, if what the slots hold, by volume and slot, is what a beginning of the order leaves.
func (l Layout) Prefix(held [][]uint64) (n uint64, err error) {
	for _, slots := range held {
		for _, record := range slots {
			n = max(n, record)
		}
	}
	wrong := 0
	for v, slots := range held {
		for s, record := range slots {
			want := l.Holds(n, v, s)
			if record == want {
				continue
			}
			if wrong++; err == nil {
				err = fmt.Errorf("record %d is there, but volume %d slot %d holds record %d instead of %d", n, v, s, record, want)
			}
		}
	}
	if err != nil {
		return n, fmt.Errorf("no beginning of the order: %d slots are wrong, the first: %w", wrong, err)
	}
	return n, nil
}

package member

import "fmt"

// Grow records a larger size, in bytes, durably. need is how many bytes of it have no space in the file system yet: they and what the ballast grows by must
// fit. On a device the file system is grown to the device's size first, where it has to be.
func (m *Member) Grow(size, need int64) error {
	if m.readOnly {
		return ErrReadOnly
	}
	need += ballastSize(size) - ballastSize(m.Superblock().Size)
	room, err := m.Room()
	if err == nil && room < need && m.mount != nil {
		if err = growXFS(m.mount); err == nil {
			room, err = m.Room()
		}
	}
	if err != nil {
		return err
	}
	if room < need {
		return fmt.Errorf("%w: that takes %d MiB more, and the file system has %d MiB to give: free space in it, or enlarge it", ErrNoSpace, need>>20, room>>20)
	}
	if err := m.SetSize(size); err != nil {
		return err
	}
	if !m.BallastHeld() {
		return nil // it is restored, in its new size, before data takes space again
	}
	if err := m.RestoreBallast(); err != nil {
		return fmt.Errorf("the size is changed: %w", err)
	}
	return nil
}

package engine

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"
)

// verifyThick: when the others have taken all that they can get, every block of a thick volume can be written, and again when it was discarded,
// wherever it was: on a member that is being drained, too.
func (st *state) verifyThick(p *testPool) error {
	var thick, others []string
	for _, v := range p.Volumes() {
		if v.Provisioning == ProvisionThick {
			thick = append(thick, v.Name)
		} else {
			others = append(others, v.Name)
		}
	}
	if len(thick) == 0 {
		return nil
	}
	p.options.SpaceWait = time.Millisecond // nothing is on its way but what thick volumes wait for
	const filler = "filler"
	if _, err := p.CreateVolume(context.Background(), VolumeSpec{Name: filler, Size: 64 << 20}); err != nil {
		return err
	}
	for _, name := range append(others, filler) {
		if err := p.fillVolume(name); err != nil && !errors.Is(err, ErrNoSpace) {
			return fmt.Errorf("fill volume %s: %w", name, err)
		}
	}
	for _, name := range thick {
		dev, err := p.opened(name)
		if err == nil {
			err = p.fillVolume(name)
		}
		if err == nil {
			err = errors.Join(dev.Discard(0, dev.Size()), dev.Flush(), p.fillVolume(name))
		}
		if err != nil {
			return fmt.Errorf("fill thick volume %s, of %d: %w\n%s", name, len(thick), err, p.spaceText())
		}
	}
	if err := p.sound(); err != nil {
		return fmt.Errorf("after filling the thick volumes: %w", err)
	}
	return nil
}

// fillVolume writes all of a volume, as far as there is space.
func (tp *testPool) fillVolume(name string) error {
	dev, err := tp.opened(name)
	for at, b := int64(0), bytes.Repeat([]byte{1}, largeWrite*BlockSize); err == nil && at < dev.Size(); at += int64(len(b)) {
		_, err = dev.WriteAt(b[:min(int64(len(b)), dev.Size()-at)], at)
	}
	if err == nil {
		err = dev.Flush()
	}
	return err
}

// spaceText is what a broken promise is looked into by.
func (tp *testPool) spaceText() string {
	free, held, pending := tp.alloc.Free()
	text := fmt.Sprintf("%d blocks free, %d held, %d pending, %d promised; %+v", free, held, pending, tp.alloc.Promised(), tp.Info().Members)
	for _, v := range tp.Volumes() {
		text += fmt.Sprintf("\n%s (%s): owns %d, %d reserved", v.Name, v.Provisioning, v.Owned/BlockSize, v.Reserved/BlockSize)
	}
	return text
}

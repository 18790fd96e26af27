package attachtest

import (
	"errors"
	"sync/atomic"

	"github.com/rowan-csi/rowan/pkg/block"
)

// errEnough ends traffic after a number of requests.
var errEnough = errors.New("enough")

// counted counts requests that were answered, and refuses more than it was told to let through.
type counted struct {
	block.Device
	count, limit atomic.Int64
}

func count(dev block.Device) *counted { return &counted{Device: dev} }

func limitTo(dev block.Device, n int64) *counted {
	c := count(dev)
	c.limit.Store(n)
	return c
}

func (c *counted) after(err error) error {
	n := c.count.Add(1)
	if limit := c.limit.Load(); err == nil && limit > 0 && n > limit {
		return errEnough
	}
	return err
}

func (c *counted) ReadAt(p []byte, off int64) (int, error) {
	n, err := c.Device.ReadAt(p, off)
	return n, c.after(err)
}

func (c *counted) WriteAt(p []byte, off int64) (int, error) {
	n, err := c.Device.WriteAt(p, off)
	return n, c.after(err)
}

func (c *counted) Flush() error { return c.after(c.Device.Flush()) }

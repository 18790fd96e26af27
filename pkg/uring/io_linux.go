package uring

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// Mode says when IO uses a ring.
type Mode int

const (
	// Auto: where it is cheaper.
	Auto Mode = iota
	// Always: for every request.
	Always
	// Never: system calls alone.
	Never
)

var modes = map[Mode]string{Auto: "auto", Always: "always", Never: "never"}

func (m Mode) String() string { return modes[m] }

// ParseMode reads what String writes.
func ParseMode(text string) (Mode, error) {
	for m, name := range modes {
		if name == text {
			return m, nil
		}
	}
	return 0, fmt.Errorf("no mode %q of io_uring: want auto, always or never", text)
}

// few requests under way are done by system calls in any case: each would wait for hand-overs that nobody shares. Small first writes of a pool go out
// together, in two or three large requests at a time; docs/design/io-uring.md has their rates.
const few = 6

// IO reads and writes files opened O_DIRECT. The nil IO uses system calls alone. It is safe for concurrent use.
type IO struct {
	ring  *Ring
	mode  Mode
	under atomic.Int32  // requests under way
	count atomic.Uint32 // requests so far
	meter meter
}

// NewIO makes an IO with a ring of its own; for Never, the nil IO.
func NewIO(mode Mode) (*IO, error) {
	if mode == Never {
		return nil, nil
	}
	r, err := New()
	if err != nil {
		return nil, err
	}
	return &IO{ring: r, mode: mode}, nil
}

// Pread is pread(2).
func (io *IO) Pread(fd int, p []byte, off int64) (int, error) {
	if io == nil {
		return pread(fd, p, off)
	}
	ring := io.enter()
	defer io.leave()
	if ring {
		if n, err := io.ring.Read(fd, p, off); !errors.Is(err, ErrClosed) {
			return n, err
		}
	}
	return pread(fd, p, off)
}

// Pwrite is pwrite(2).
func (io *IO) Pwrite(fd int, p []byte, off int64) (int, error) {
	if io == nil {
		return pwrite(fd, p, off)
	}
	ring := io.enter()
	defer io.leave()
	if ring {
		if n, err := io.ring.Write(fd, p, off); !errors.Is(err, ErrClosed) {
			return n, err
		}
	}
	return pwrite(fd, p, off)
}

// yieldEvery is how many system calls a goroutine makes, on the average, until it lets others run. For one that did nothing else for 10 ms Go's runtime (1.26:
// retake, in proc.go) takes the processor away in each further call, with a thread that looks every 20 µs and another that waits for work meanwhile: 16 % of
// a single reader's rate on two cores. Letting others run, where there are none, costs 0.2 µs and begins those 10 ms anew.
const yieldEvery = 16

// yield is called before a system call that waits for a disk.
func yield() {
	if rand.Uint32()%yieldEvery == 0 {
		runtime.Gosched()
	}
}

func pread(fd int, p []byte, off int64) (int, error) {
	yield()
	return unix.Pread(fd, p, off)
}

func pwrite(fd int, p []byte, off int64) (int, error) {
	yield()
	return unix.Pwrite(fd, p, off)
}

// enter says whether a request goes to the ring.
func (io *IO) enter() bool {
	under := io.under.Add(1)
	if io.mode == Always {
		return true
	}
	if io.count.Add(1)%meterEvery == 0 {
		io.meter.look()
	}
	return under >= few && io.meter.busy.Load()
}

func (io *IO) leave() { io.under.Add(-1) }

// Close waits for requests in the ring. Later ones are done by system calls.
func (io *IO) Close() error {
	if io == nil {
		return nil
	}
	return errors.Join(io.ring.Close(), io.meter.close())
}

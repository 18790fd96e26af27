package host

import (
	"testing"

	"github.com/rowan-csi/rowan/pkg/block"
)

// closing is a device whose requests wait, and then fail as a closed volume's do.
type closing struct {
	block.Device
	entered, leave chan struct{}
}

func (c *closing) wait() error {
	c.entered <- struct{}{}
	<-c.leave
	return block.ErrClosed
}

func (c *closing) ReadAt([]byte, int64) (int, error)  { return 0, c.wait() }
func (c *closing) WriteAt([]byte, int64) (int, error) { return 0, c.wait() }
func (c *closing) Discard(int64, int64) error         { return c.wait() }
func (c *closing) WriteZeroes(int64, int64) error     { return c.wait() }
func (c *closing) Flush() error                       { return c.wait() }

// TestGateParksWhatFails: requests that a closing volume turned away are not answered.
func TestGateParksWhatFails(t *testing.T) {
	c := &closing{entered: make(chan struct{}), leave: make(chan struct{})}
	parked := make(chan struct{})
	g := &gate{Device: c, park: func() { parked <- struct{}{} }}
	answered := make(chan string, 5)
	for name, call := range map[string]func(){
		"read":         func() { g.ReadAt(nil, 0) },
		"write":        func() { g.WriteAt(nil, 0) },
		"discard":      func() { g.Discard(0, 0) },
		"write zeroes": func() { g.WriteZeroes(0, 0) },
		"flush":        func() { g.Flush() },
	} {
		go func() {
			call()
			answered <- name
		}()
		<-c.entered
	}
	held := make(chan error)
	go func() { held <- g.hold(t.Context()) }()
	for !g.shut.Load() { // set before hold waits
	}
	close(c.leave)
	for range 5 {
		select {
		case <-parked:
		case name := <-answered:
			t.Fatalf("%s was answered", name)
		}
	}
	if err := <-held; err != nil {
		t.Fatal(err)
	}
}

// TestOpenGateHandsErrorsOn: while nobody stops, errors are answers like others.
func TestOpenGateHandsErrorsOn(t *testing.T) {
	c := &closing{entered: make(chan struct{}, 1), leave: make(chan struct{})}
	close(c.leave)
	if err := (&gate{Device: c}).Flush(); err != block.ErrClosed {
		t.Fatal(err)
	}
}

// Package attachtest is the conformance suite of attach.Attacher: block.Device's own suite through the kernel's block device, file systems, growth,
// errors, detaching what is in use, and restarts of the serving process, by SIGKILL under verified I/O too.
//
// It imports testing, so only tests import it. Everything it does has a deadline, after which the attachment is aborted: a device that nobody serves
// would otherwise hang the test for good.
package attachtest

import (
	"context"
	"os"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
)

// Patience bounds each step that waits for the kernel or for a process.
const Patience = 60 * time.Second

// Attacher is what the suite needs beyond attach.Attacher.
type Attacher interface {
	attach.Attacher
	// Abort makes all I/O of an attachment fail, whether or not somebody serves it.
	Abort(ctx context.Context, id string) error
}

// Config says how to get what is tested.
type Config struct {
	// New makes an Attacher such as a restarted process would make: it finds what others of the same test left behind.
	New func(t testing.TB) Attacher
	// Survives: attachments outlive the Attacher's Close. Without it restarts are not tested.
	Survives bool
	// Serve starts this test binary again, to call Child with these arguments; nil leaves the SIGKILL test out.
	Serve Starter
}

// Run runs the suite.
func Run(t *testing.T, c Config) {
	for _, test := range []struct {
		name string
		run  func(*testing.T, Config)
	}{
		{"Device512", func(t *testing.T, c Config) { testDevice(t, c, 512) }},
		{"Device4096", func(t *testing.T, c Config) { testDevice(t, c, 4096) }},
		{"Arguments", testArguments},
		{"SectorOption", testSectorOption},
		{"FileSystem", testFileSystem},
		{"Discard", testDiscard},
		{"Grow", testGrow},
		{"NoSpace", testNoSpace},
		{"Errors", testErrors},
		{"Depth", testDepth},
		{"OneStuckDoesNotStopOthers", testStuck},
		{"DetachWhileOpen", testDetachWhileOpen},
		{"DetachWhileMounted", testDetachWhileMounted},
		{"Restart", testRestart},
		{"Abort", testAbort},
		{"ManyAtOnce", testManyAtOnce},
		{"Kill", testKill},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, c) })
	}
}

// ctx is the deadline of a test's steps.
func limited(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	t.Cleanup(cancel)
	return ctx
}

// started makes an Attacher that is closed at the end of the test.
func started(t testing.TB, c Config) Attacher {
	a := c.New(t)
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		if err := a.Close(ctx); err != nil {
			t.Errorf("close attacher: %v", err)
		}
	})
	return a
}

// attached attaches dev, detaches it at the end of the test, and aborts it when the test takes too long.
func attached(t testing.TB, a Attacher, id string, dev block.Device, o attach.Options) attach.Attachment {
	t.Helper()
	at, err := a.Attach(limited(t), id, dev, o)
	if err != nil {
		t.Fatalf("attach: %v", err)
	}
	clean(t, a, at)
	return at
}

// clean detaches at the end of the test, by force if need be.
func clean(t testing.TB, a Attacher, at attach.Attachment) {
	abort := time.AfterFunc(2*Patience, func() {
		t.Errorf("%s takes longer than %v: its I/O is aborted", t.Name(), 2*Patience)
		if err := a.Abort(context.Background(), at.ID()); err != nil {
			t.Errorf("abort: %v", err)
		}
	})
	t.Cleanup(func() {
		defer abort.Stop()
		ctx, cancel := context.WithTimeout(context.Background(), Patience)
		defer cancel()
		err := at.Detach(ctx)
		if err == nil {
			return
		}
		t.Errorf("detach: %v", err)
		if err := a.Abort(ctx, at.ID()); err != nil {
			t.Errorf("abort: %v", err)
		}
	})
}

// opened opens an attachment's node for direct I/O.
func opened(t testing.TB, at attach.Attachment) *blocktest.File {
	t.Helper()
	return openNode(t, at.Path(), os.O_RDWR|directFlag)
}

func openNode(t testing.TB, path string, flags int) *blocktest.File {
	t.Helper()
	f, err := blocktest.OpenFile(path, flags, 512)
	if err != nil {
		t.Fatalf("open the device: %v", err)
	}
	t.Cleanup(func() { _ = f.Close() })
	return f
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	deadline := time.After(Patience)
	for !ok() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("waited %v for: %s", Patience, what)
		}
	}
}

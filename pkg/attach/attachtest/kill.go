package attachtest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/attach"
	"github.com/rowan-csi/rowan/pkg/block/blocktest"
)

const directFlag = syscall.O_DIRECT

// Starter makes the command that runs this test binary again, such that it calls Child(…, id, image).
type Starter func(t testing.TB, id, image string) *exec.Cmd

// Child serves the file image as attachment id: it resumes it, or attaches it where there is none. It writes "ready" and the node to out, and serves
// until in ends (or it is killed).
func Child(a attach.Attacher, id, image string, in io.Reader, out io.Writer) error {
	dev, err := blocktest.OpenFile(image, os.O_RDWR, 512)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(context.Background(), Patience)
	defer cancel()
	at, err := a.Resume(ctx, id, dev)
	if errors.Is(err, attach.ErrNotFound) {
		at, err = a.Attach(ctx, id, dev, attach.Options{})
	}
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintln(out, "ready", at.Path()); err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, in); err != nil {
		return err
	}
	closing, cancelClose := context.WithTimeout(context.Background(), Patience)
	defer cancelClose()
	return errors.Join(a.Close(closing), dev.Close())
}

// child is a serving process.
type child struct {
	cmd   *exec.Cmd
	stdin io.WriteCloser
	path  string
}

func startChild(t testing.TB, c Config, id, image string) *child {
	t.Helper()
	cmd := c.Serve(t, id, image)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	stdout, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	k := &child{cmd: cmd, stdin: stdin}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	watchdog := time.AfterFunc(Patience, func() { _ = cmd.Process.Kill() })
	defer watchdog.Stop()
	line, err := bufio.NewReader(stdout).ReadString('\n')
	path, ok := strings.CutPrefix(strings.TrimSpace(line), "ready ")
	if err != nil || !ok {
		t.Fatalf("serving process said %q: %v", line, err)
	}
	k.path = path
	return k
}

func (k *child) kill(t testing.TB) {
	t.Helper()
	if err := k.cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	_ = k.cmd.Wait() // "signal: killed"
}

// testKill kills the serving process again and again under verified direct I/O of 16 workers: no request may fail, and every sector must hold what
// was written last.
func testKill(t *testing.T, c Config) {
	if c.Serve == nil {
		t.Skip("no command to serve in another process")
	}
	const id, kills = "kill", 8
	image := filepath.Join(t.TempDir(), "image")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(image, 64<<20); err != nil {
		t.Fatal(err)
	}
	k := startChild(t, c, id, image)
	path := k.path
	parent := started(t, c)
	stuck := time.AfterFunc(2*Patience, func() {
		t.Error("took too long: aborted")
		_ = parent.Abort(context.Background(), id)
	})
	defer stuck.Stop()
	f := openNode(t, path, os.O_RDWR|directFlag)
	traffic := count(f)
	stop, cancel := context.WithCancel(context.Background())
	defer cancel()
	done := make(chan error, 1)
	go func() {
		stats, err := blocktest.Torture(stop, traffic, blocktest.TortureOptions{Workers: 16, MaxIO: 2 << 20})
		t.Logf("%+v over %d kills", stats, kills)
		done <- err
	}()
	var longest time.Duration
	more := func(n int64) func() bool {
		before := traffic.count.Load()
		return func() bool {
			select {
			case err := <-done:
				t.Fatalf("I/O over SIGKILLs: %v", err)
			default:
			}
			return traffic.count.Load() > before+n
		}
	}
	for range kills {
		eventually(t, "traffic", more(300))
		k.kill(t)
		begin := time.Now()
		k = startChild(t, c, id, image)
		if k.path != path {
			t.Errorf("the node was %s and is %s", path, k.path)
		}
		eventually(t, "traffic after a kill", more(0))
		longest = max(longest, time.Since(begin))
	}
	t.Logf("longest pause, from the end of the dead process to the first answer: %v", longest)
	cancel()
	if err := <-done; err != nil {
		t.Errorf("I/O over SIGKILLs: %v", err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	// The last process ends well; then this one takes over, to detach.
	_ = k.stdin.Close()
	if err := k.cmd.Wait(); err != nil {
		t.Errorf("serving process: %v", err)
	}
	dev, err := blocktest.OpenFile(image, os.O_RDWR, 512)
	if err != nil {
		t.Fatal(err)
	}
	at, err := parent.Resume(limited(t), id, dev)
	if err != nil {
		t.Fatal(err)
	}
	if err := at.Detach(limited(t)); err != nil {
		t.Error(err)
	}
	if err := dev.Close(); err != nil {
		t.Error(err)
	}
}

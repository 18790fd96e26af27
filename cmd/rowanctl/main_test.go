package main

import (
	"bytes"
	"context"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
	"github.com/rowan-csi/rowan/pkg/engine/host/hosttest"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
)

var update = flag.Bool("update", false, "write the golden files and docs/rowanctl.md anew")

// stage is an engine in memory behind a real socket.
type stage struct {
	engine   hosttest.Engine
	attacher hosttest.Attacher
	socket   string
}

func newStage(t *testing.T) *stage {
	t.Helper()
	dir := t.TempDir()
	version = "v0.1.0"
	s := &stage{socket: filepath.Join(dir, "engine.sock")}
	h, err := host.New(t.Context(), host.Config{Engine: &s.engine, Attacher: &s.attacher, StateDir: filepath.Join(dir, "state")})
	if err != nil {
		t.Fatal(err)
	}
	if err := h.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	l, err := rpc.Listen(s.socket)
	if err != nil {
		t.Fatal(err)
	}
	server, served := rpc.NewServer(h, "v0.1.0"), make(chan error, 1)
	go func() { served <- server.Serve(l) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		server.Stop(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
		if err := h.Stop(ctx); err != nil {
			t.Error(err)
		}
	})
	return s
}

// never is a clock on which nothing takes long.
func never(time.Duration) <-chan time.Time { return nil }

// run is one call of the program: what it printed, and its exit code.
func (s *stage) run(t *testing.T, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	a := &app{out: &o, err: &e, after: never}
	code = a.run(t.Context(), append([]string{"--socket", s.socket}, args...))
	return o.String(), e.String(), code
}

// transcript runs commands, one a line, and returns what a reader of the terminal would have seen.
func (s *stage) transcript(t *testing.T, script string) string {
	t.Helper()
	var b strings.Builder
	for line := range strings.Lines(script) {
		line = strings.TrimSpace(line)
		if line == "(guest's writes are in two ranges)" {
			s.pool(t).Ranges = []engine.Range{{Offset: 0, Length: 8 << 20}, {Offset: 1 << 30, Length: 4096}}
			continue
		}
		if line == "(a disk fails)" {
			s.engine.Damage = []engine.ScrubProblem{{
				Pool: "fast", Snapshots: []engine.ScrubSnapshot{{Name: "before-upgrade", Volume: "db"}}, Volumes: []string{"db", "db-old"}, Offset: 1 << 20,
				Length: 8192, Member: "/pools/fast", File: "/pools/fast/segments/000000.seg", FileOffset: 40960,
				Reason: "its checksum is 0badcafe, the data's deadbeef",
			}}
			continue
		}
		if blocks, ok := strings.CutPrefix(line, "(guest writes "); ok {
			var n uint64
			if _, err := fmt.Sscanf(blocks, "%d blocks)", &n); err != nil {
				t.Fatal(err)
			}
			s.pool(t).Wrote("db", n)
			continue
		}
		out, errs, code := s.run(t, strings.Fields(line)...)
		fmt.Fprintf(&b, "$ rowanctl %s\n%s%s", line, out, strings.ReplaceAll(errs, s.socket, "/run/rowan/engine.sock"))
		if code != exitOK {
			fmt.Fprintf(&b, "[exit %d]\n", code)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// pool is the engine's own side of pool fast.
func (s *stage) pool(t *testing.T) *hosttest.Pool {
	t.Helper()
	p := s.engine.Disk("/pools/fast")
	if p == nil {
		t.Fatal("no pool in /pools/fast")
	}
	return p
}

// golden compares text with a file of testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	name = filepath.Join("testdata", name)
	if *update {
		if err := os.MkdirAll(filepath.Dir(name), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(name, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Errorf("%s differs (go test -update writes it anew); got:\n%s", name, text)
	}
}

const life = `version
pool list
pool create fast --dir /pools/fast --size 100Gi
pool list
pool show
volume create db --size 10Gi --label tier=gold --label app=shop
volume attach db
(guest writes 4000 blocks)
volume show db
snapshot create before-upgrade db
snapshot create after-upgrade db --label why=upgrade
(guest writes 400 blocks)
snapshot list
snapshot show before-upgrade
snapshot restore before-upgrade db-old
volume create db-copy --from-volume db
volume create ledger --size 4Gi --thick
volume show ledger
pool show
volume delete ledger
volume label db tier=silver app-
volume attach --read-only db-old
volume list
snapshot create --group nightly db db-copy --label keep=7
snapshot list --group nightly
snapshot show nightly-db
(guest's writes are in two ranges)
snapshot diff before-upgrade nightly-db
snapshot diff before-upgrade --volume db
snapshot allocated before-upgrade
snapshot delete nightly-db nightly-db-copy
volume grow db 20Gi
volume detach db
snapshot rollback before-upgrade
volume show db
volume delete db-old2 db
volume detach db-old
volume delete db-old db-copy
snapshot delete before-upgrade after-upgrade
snapshot list
pool check
pool scrub
(a disk fails)
pool scrub
pool grow fast 200Gi
pool close fast
pool open --member /pools/fast
`

func TestTables(t *testing.T) { golden(t, "tables.golden", newStage(t).transcript(t, life)) }

func TestJSON(t *testing.T) {
	var script strings.Builder
	for line := range strings.Lines(life) {
		if !strings.HasPrefix(line, "(") {
			line = strings.TrimSpace(line) + " -o json\n"
		}
		script.WriteString(line)
	}
	golden(t, "json.golden", newStage(t).transcript(t, script.String()))
}

func TestWrongUsage(t *testing.T) {
	golden(t, "usage.golden", newStage(t).transcript(t, `nonsense
pool nonsense
pool create
pool create a
pool create a --dir /a --device /dev/a
pool create a --dir /a --size 0
pool create a --dir /a --size 65Ti
pool create a --dir /a --size lots
pool list extra
pool open
pool list -o yaml
volume create v
volume create v --size -1Gi
volume create v --size 1Gi --thick --thin
volume create v --from-snapshot s --from-volume w
volume create v --size 1Gi --label nonsense
volume label v
volume label v =x
volume grow v 0
pool grow a
pool grow a lots
volume attach
volume delete
snapshot create s
snapshot create s a b
snapshot diff a
snapshot diff a b --volume v
snapshot allocated
pool check a --dir /b
snapshot create --group g
snapshot create --group= s a b
pool list --timeout -1s
pool list --nonsense
`))
}

func TestErrors(t *testing.T) {
	s := newStage(t)
	fails := map[string]error{
		"lost": engine.ErrLost, "locked": engine.ErrLocked, "new": engine.ErrIncompatible, "bad": engine.ErrCorrupt, "foreign": engine.ErrForeign,
		"full": engine.ErrNotBlank, "failed": engine.ErrFailed,
	}
	s.engine.Fail = func(op, name string) error {
		if op == "CreatePool" && fails[name] != nil {
			return fails[name]
		}
		if op == "CreateVolume" && name == "huge" {
			return engine.ErrNoSpace
		}
		return nil
	}
	var b strings.Builder
	b.WriteString(s.transcript(t, `volume list
pool show nowhere
pool create lost --dir /x
pool create locked --dir /x
pool create new --dir /x
pool create bad --dir /x
pool create foreign --dir /x
pool create full --device /dev/x
pool create failed --dir /x
pool create fast --dir /pools/fast
pool create fast --dir /elsewhere
volume create huge --size 1Ti
volume create db --size 1Gi
volume create db --size 1Gi
volume create a/b --size 1Gi
volume attach db
volume delete db
volume grow db 1Mi
pool grow fast 1Gi
snapshot create s db
volume create other --size 1Gi
snapshot rollback nowhere
pool create second --dir /pools/second
volume list
`))
	s.socket = "/nonexistent/engine.sock"
	b.WriteString(s.transcript(t, "pool list\nversion\n"))
	golden(t, "errors.golden", b.String())
}

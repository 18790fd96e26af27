package bench

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/pkg/block"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

func TestHistogramQuantiles(t *testing.T) {
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	rng := rand.New(rand.NewPCG(seed, 0))
	var h histogram
	var all []time.Duration
	for range 10_000 {
		d := time.Duration(rng.Int64N(1 << (10 + rng.IntN(24))))
		h.add(d)
		all = append(all, d)
	}
	slices.Sort(all)
	for _, q := range []float64{0.01, 0.5, 0.9, 0.99, 0.999, 1} {
		exact := all[int(q*float64(len(all))+0.999999)-1]
		if got := h.quantile(q); got < exact || float64(got) > float64(exact)*1.0625+1 {
			t.Errorf("quantile %v is %v, exactly %v", q, got, exact)
		}
	}
	if h.quantile(1) != all[len(all)-1] || h.count() != uint64(len(all)) {
		t.Errorf("maximum %v of %d, want %v of %d", h.quantile(1), h.count(), all[len(all)-1], len(all))
	}
	if (&histogram{}).quantile(0.99) != 0 {
		t.Error("an empty histogram has a quantile")
	}
}

func TestPermutationVisitsAllOnce(t *testing.T) {
	for _, n := range []int64{1, 2, 3, 4, 5, 1000, 4096, 5000, 1 << 15} {
		p := newPermutation(n, uint64(n))
		seen := make([]bool, n)
		moved := 0
		for i := range uint64(n) {
			x := p.at(i)
			if x < 0 || x >= n || seen[x] {
				t.Fatalf("of %d, number %d is %d: out of range or for the second time", n, i, x)
			}
			seen[x] = true
			if x != int64(i) {
				moved++
			}
			if p.at(i+uint64(n)) != x {
				t.Fatalf("of %d, number %d differs the second time round", n, i)
			}
		}
		if n >= 1000 && moved < int(n)*9/10 {
			t.Errorf("of %d, only %d are not in their place", n, moved)
		}
	}
}

func TestFigureLines(t *testing.T) {
	for _, c := range []struct {
		f    Figure
		want string
		met  bool
	}{
		{Figure{Name: "rate", Value: 48210.4, Unit: "/s"}, "rate 48210 /s", true},
		{Figure{Name: "ratio", Value: 0.934, AtLeast: bar(0.8)}, "ratio 0.93 (bar at least 0.80)", true},
		{Figure{Name: "ratio", Value: 0.7949, AtLeast: bar(0.8)}, "ratio 0.79 (bar at least 0.80) MISSED", false},
		{Figure{Name: "reads", Value: 0, AtMost: bar(0)}, "reads 0 (bar at most 0)", true},
		{Figure{Name: "p99", Value: 10.04, Unit: "ms", AtMost: bar(10)}, "p99 10.0 ms (bar at most 10) MISSED", false},
	} {
		if got := c.f.String(); got != c.want || c.f.Met() != c.met {
			t.Errorf("%q, met %v; want %q, %v", got, c.f.Met(), c.want, c.met)
		}
	}
	r := Report{Machine: "m", Method: "x", Figures: []Figure{{Name: "b", Value: 1, AtLeast: bar(2)}, {Name: "a", Value: 1}}}
	var out bytes.Buffer
	if err := r.Print(&out); err != nil {
		t.Fatal(err)
	}
	if want := "machine: m\nmethod: x\na 1\nb 1 (bar at least 2) MISSED\n"; out.String() != want {
		t.Errorf("printed\n%swant\n%s", &out, want)
	}
	if m := r.Missed(); len(m) != 1 || m[0].Name != "b" {
		t.Errorf("missed: %v", m)
	}
}

func TestDriveEndsAtLimitAndAtErrors(t *testing.T) {
	dev := block.NewRAM(1<<20, 4096)
	l := load{depth: 4, bytes: blockSize, at: random(dev.Size(), blockSize, 1), write: true, limit: 200}
	d, err := l.drive(t.Context(), dev)
	if err != nil || d.requests != 200 || d.latency.count() != 200 {
		t.Fatalf("%d requests, %v; want 200", d.requests, err)
	}
	if dev.Allocated() == 0 {
		t.Fatal("nothing was written")
	}
	broken := errors.New("broken")
	dev.FailNext(block.OpWrite, broken)
	if _, err := l.drive(t.Context(), dev); !errors.Is(err, broken) {
		t.Fatalf("a failed write gave %v", err)
	}
	ended, cancel := context.WithCancelCause(t.Context())
	cancel(broken)
	if _, err := l.driveFor(ended, dev, time.Minute); !errors.Is(err, broken) {
		t.Fatalf("a run that was ended gave %v", err)
	}
}

func TestConfigIsChecked(t *testing.T) {
	good := Config{Dir: t.TempDir(), RingDir: "r", Size: 64 << 20, Round: time.Second, Rounds: 1, Depth: 1, Parts: Parts, Blocks: 1, Samples: 1, FoldBlocks: minFoldBlocks}
	if err := good.check(); err != nil {
		t.Skip(err) // too little space
	}
	for name, change := range map[string]func(*Config){
		"no folder": func(c *Config) { c.Dir = "" }, "a folder that is not there": func(c *Config) { c.Dir += "/none" },
		"no space": func(c *Config) { c.Size = 1 << 50 }, "small": func(c *Config) { c.Size = 1 << 20 }, "odd": func(c *Config) { c.Size++ },
		"short": func(c *Config) { c.Round = time.Millisecond }, "no rounds": func(c *Config) { c.Rounds = 0 }, "deep": func(c *Config) { c.Depth = 5000 },
		"unknown part": func(c *Config) { c.Parts = []string{"all"} }, "no part": func(c *Config) { c.Parts = nil },
	} {
		c := good
		change(&c)
		if _, err := Run(t.Context(), c); !errors.Is(err, ErrConfig) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// small is a run that measures nothing worth knowing, on whatever the tests run on.
func small(t *testing.T) Config {
	if _, err := exec.LookPath("fio"); err != nil {
		t.Skip(ErrNoFio)
	}
	dir := t.TempDir()
	if u, err := fsys.OS().Usage(dir); err != nil || u.Type != "ext4" && u.Type != "xfs" {
		t.Skipf("needs xfs or ext4: the folder for temporary files is on %s (%v); set TMPDIR", u.Type, err)
	}
	ring := "/dev/shm"
	if u, err := fsys.OS().Usage(ring); err != nil || u.Type != "tmpfs" {
		t.Skipf("needs a tmpfs at %s: it is %s (%v)", ring, u.Type, err)
	}
	c := Config{
		Dir: dir, RingDir: ring, Size: 64 << 20, Round: 100 * time.Millisecond, Rounds: 1, Depth: 4, Blocks: 2000, Samples: 3, FoldBlocks: minFoldBlocks,
		Progress: t.Logf,
		// Space and fold have no small form: their figures are of a size.
		Parts: slices.DeleteFunc(slices.Clone(Parts), func(p string) bool { return p == PartSpace || p == PartFold }),
	}
	if err := c.check(); err != nil {
		t.Skip(err) // too little space
	}
	return c
}

func TestRun(t *testing.T) {
	c := small(t)
	r, err := Run(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	barred := map[string]bool{}
	for _, f := range r.Figures {
		if _, twice := barred[f.Name]; twice {
			t.Errorf("figure %s is there twice", f.Name)
		}
		barred[f.Name] = f.AtLeast != nil || f.AtMost != nil
	}
	want := []string{"read-q4-ratio", "overwrite-q4-ratio", "first-write-q4-ratio", "read-q1-ratio", "overwrite-q1-ratio",
		"overwrite-flush-q1-ratio", "first-write-q1-ratio", "first-write-flush-q1-ratio", "cow-first-write-q4-ratio", "data-bytes-per-first-write", "data-reads-per-first-write",
		"metadata-bytes-per-first-write", "memory-resident-while-writing"}
	for _, size := range []string{"1GiB", "1024GiB"} {
		for _, there := range []string{"1", "1000"} {
			for _, w := range writers {
				for _, what := range []string{"snapshot-p99", "restore-p99", "write-max"} {
					want = append(want, strings.Join([]string{what, size, there, w.name}, "-"))
				}
			}
		}
	}
	for _, name := range want {
		if !barred[name] {
			t.Errorf("no figure %s with a bar", name)
		}
	}
	if text, err := json.Marshal(r); err != nil || !bytes.Contains(text, []byte("read-q4-plain")) {
		t.Errorf("as JSON: %s, %v", text, err)
	}
	isEmpty(t, c.Dir)
}

func TestRunLeavesNothingWhenEnded(t *testing.T) {
	c := small(t)
	ctx, cancel := context.WithCancelCause(t.Context())
	enough := errors.New("enough")
	c.Parts = []string{PartFirst}
	c.Round = 10 * time.Minute
	c.Progress = func(string, ...any) { time.AfterFunc(time.Second, func() { cancel(enough) }) }
	if _, err := Run(ctx, c); !errors.Is(err, enough) {
		t.Fatalf("a run that was ended gave %v", err)
	}
	isEmpty(t, c.Dir)
}

func isEmpty(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil || len(left) > 0 {
		t.Errorf("the run left %v, %v", left, err)
	}
}

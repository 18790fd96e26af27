package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func specsNamed(names ...string) (list []spec) {
	for _, n := range names {
		list = append(list, spec{Name: ours + " " + n})
	}
	return list
}

func TestPlan(t *testing.T) {
	specs := append(specsNamed("d", "c", "b", "a", "x [Slow]"), spec{Name: "ConfigMap should be mounted"})
	list, err := parseRules("leave-out\t\\[Slow\\]\ttakes long\n")
	if err != nil {
		t.Fatal(err)
	}
	short := func(names []string) (all string) {
		for _, n := range names {
			all += strings.TrimPrefix(n, ours+" ")
		}
		return all
	}
	for _, c := range []struct {
		shard, only, want string
	}{{"", "", "abcd"}, {"1/2", "", "ac"}, {"2/2", "", "bd"}, {"3/3", "", "c"}, {"", " [ad]$", "ad"}} {
		part, err := parseShard(c.shard)
		if err != nil {
			t.Fatal(err)
		}
		var only *regexp.Regexp
		if c.only != "" {
			only = regexp.MustCompile(c.only)
		}
		p, err := makePlan(specs, list, part, only)
		if err != nil || short(p.run) != c.want || len(p.all) != 5 || p.leftOut != 1 {
			t.Errorf("%+v: runs %q of %d, %d left out, %v", c, short(p.run), len(p.all), p.leftOut, err)
		}
	}
	if _, err := makePlan(specs[5:], list, shard{}, nil); err == nil {
		t.Error("a list without a spec of the driver is taken")
	}
	for _, bad := range []string{"2", "0/2", "3/2", "a/b", "1/"} {
		if _, err := parseShard(bad); err == nil {
			t.Errorf("shard %q is taken", bad)
		}
	}
}

func TestJudge(t *testing.T) {
	const vac = "no VAC"
	for _, c := range []struct {
		name     string
		outcomes []outcome
		least    int
		part     bool
		missed   bool
	}{
		{"all passed", []outcome{{Name: "a", State: "passed"}, {Name: "b", State: "skipped", Reason: vac}}, 1, false, false},
		{"fewer than recorded", []outcome{{Name: "a", State: "passed"}, {Name: "b", State: "skipped", Reason: vac}}, 2, false, true},
		{"fewer than recorded, of a part", []outcome{{Name: "a", State: "passed"}, {Name: "b", State: "skipped", Reason: vac}}, 2, true, false},
		{"one failed", []outcome{{Name: "a", State: "failed"}, {Name: "b", State: "skipped", Reason: vac}}, 0, false, true},
		{"one ran out of time", []outcome{{Name: "a", State: "timedout"}, {Name: "b", State: "skipped", Reason: vac}}, 0, false, true},
		{"one passed when repeated", []outcome{{Name: "a", State: "failed"}, {Name: "a", State: "passed"},
			{Name: "b", State: "skipped", Reason: vac}}, 0, false, true},
		{"one was interrupted, then passed", []outcome{{Name: "a", State: "interrupted"}, {Name: "a", State: "passed"},
			{Name: "b", State: "skipped", Reason: vac}}, 1, false, false},
		{"one did not run", []outcome{{Name: "b", State: "skipped", Reason: vac}}, 0, false, true},
		{"a skip without a rule", []outcome{{Name: "a", State: "skipped", Reason: "no node"}, {Name: "b", State: "skipped", Reason: vac}}, 0, false, true},
		{"a rule for nothing", []outcome{{Name: "a", State: "passed"}, {Name: "b", State: "passed"}}, 0, false, true},
		{"a rule for nothing of a part", []outcome{{Name: "a", State: "passed"}, {Name: "b", State: "passed"}}, 0, true, false},
	} {
		list, err := parseRules("skipped\tno VAC\tnot there\n")
		if err != nil {
			t.Fatal(err)
		}
		p := plan{all: []string{"a", "b"}, run: []string{"a", "b"}}
		if c.part {
			p.all = append(p.all, "c")
		}
		results := histories(c.outcomes)
		v := judge(p, p.run, results, list, c.least)
		if v.missed() != c.missed {
			t.Errorf("%s: %+v", c.name, v)
		}
		var out strings.Builder
		v.print(&out, results, p.run)
		if !strings.Contains(out.String(), fmt.Sprintf("upstream_passed %d (", v.passed)) {
			t.Errorf("%s prints %q", c.name, out.String())
		}
	}
}

func TestStore(t *testing.T) {
	st := store{dir: t.TempDir()}
	write := func(text string) {
		t.Helper()
		f, err := os.OpenFile(st.results(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteString(text); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
	}
	open := func(identity string, fresh, want bool) {
		t.Helper()
		if goesOn, err := st.open(identity, fresh); err != nil || goesOn != want {
			t.Fatalf("open %q: goes on %v, %v", identity, goesOn, err)
		}
	}
	count := func(want int) []outcome {
		t.Helper()
		list, err := st.read()
		if err != nil || len(list) != want {
			t.Fatalf("%d outcomes, want %d: %v", len(list), want, err)
		}
		return list
	}
	open("one", false, false)
	count(0)
	write(`{"name":"a","state":"passed"}` + "\n" + `{"name":"b","sta`) // killed while it wrote
	if list := count(1); !slices.Equal(list, []outcome{{Name: "a", State: "passed"}}) {
		t.Errorf("%+v", list)
	}
	open("one", false, true)
	count(1)
	write(`{"name":"b","state":"passed"}` + "\n")
	count(2)
	open("two", false, false)
	count(0)
	write(`{"name":"a","state":"passed"}` + "\n")
	open("two", true, false)
	count(0)
	if err := st.close(); err != nil {
		t.Fatal(err)
	}
	open("two", false, false)
	count(0)
}

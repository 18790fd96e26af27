package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestParseRules(t *testing.T) {
	list, err := parseRules("# why\n\nleave-out\t\\[Slow\\]\ttakes long\nskipped\tno VAC\tnot there\n")
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[1].line != 4 {
		t.Fatalf("%d rules, the second in line %d", len(list), list[1].line)
	}
	if r := list.find(leaveOut, "writes [Slow]"); r == nil || r.why != "takes long" {
		t.Errorf("a spec that is left out has rule %v", r)
	}
	if r := list.find(leaveOut, "no VAC"); r != nil {
		t.Errorf("a rule for skips leaves out: %v", r)
	}
	if left := list.unused(); len(left) != 1 || left[0].line != 4 {
		t.Errorf("unused: %v", left)
	}
}

func TestParseRulesRefuses(t *testing.T) {
	for _, line := range []string{"leave-out\t[Slow\twhy", "skipped\tx", "skipped\tx\t ", "skip\tx\twhy", "skipped\t.*\twhy", "skipped x why"} {
		if _, err := parseRules("# one\n" + line); err == nil || !strings.Contains(err.Error(), "line 2") {
			t.Errorf("%q: %v", line, err)
		}
	}
}

func TestSettle(t *testing.T) {
	const text = "no-sys-resource\tgrows\text4 cannot grow mounted\none-node\tgroup\tof one node\nskipped\tno VAC\tnot there\n"
	for _, c := range []struct{ can, single bool }{{}, {can: true}, {single: true}, {can: true, single: true}} {
		list, err := parseRules(text)
		if err != nil {
			t.Fatal(err)
		}
		list = list.settle(c.can, c.single)
		if grows, group := list.find(leaveOut, "grows"), list.find(leaveOut, "group"); (grows == nil) != c.can || (group == nil) != c.single {
			t.Errorf("%+v: %d rules, %v and %v leave out", c, len(list), grows, group)
		}
	}
}

// TestOwnFiles: what the repository has can be read.
func TestOwnFiles(t *testing.T) {
	dir := filepath.Join("..", "..", "test", "e2e", "upstream")
	if _, err := readRules(filepath.Join(dir, "skips.txt")); err != nil {
		t.Error(err)
	}
	if _, err := readPasses(filepath.Join(dir, "passes.txt")); err != nil {
		t.Error(err)
	}
}

func TestPasses(t *testing.T) {
	file := filepath.Join(t.TempDir(), "passes.txt")
	if err := os.WriteFile(file, []byte("# how many\n12\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if n, err := readPasses(file); err != nil || n != 12 {
		t.Errorf("%d, %v", n, err)
	}
	if err := recordPasses(file, 13); err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(file); err != nil || string(text) != "# how many\n13\n" {
		t.Errorf("%q, %v", text, err)
	}
	for _, bad := range []string{"", "1\n2\n", "many\n", "-1\n"} {
		if err := os.WriteFile(file, []byte(bad), 0o644); err != nil {
			t.Fatal(err)
		}
		if _, err := readPasses(file); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
}

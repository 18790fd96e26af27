package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRetentionPlan plans lists of testdata/retention: no engine is asked.
func TestRetentionPlan(t *testing.T) {
	s := &stage{socket: "/nonexistent/engine.sock"}
	script := "retention plan testdata/retention/list.json --policy testdata/retention/policy.yaml\n" +
		"retention plan testdata/retention/list.json --policy testdata/retention/policy.yaml --policy-uid p-1 --now 2027-06-01T00:00:00Z\n" +
		"retention plan testdata/retention/list.json --policy testdata/retention/object.yaml -o json\n" +
		"retention plan testdata/retention/list.json --policy testdata/retention/cluster.yaml\n" +
		"retention plan testdata/retention/list.json --policy testdata/retention/wrong.yaml\n" +
		"retention plan testdata/retention/list.json --policy testdata/retention/misspelt.yaml\n" +
		"retention plan testdata/retention/policy.yaml --policy testdata/retention/policy.yaml\n" +
		"retention plan testdata/retention/list.json --policy testdata/retention/list.json\n" +
		"retention plan testdata/retention/nowhere.json --policy testdata/retention/policy.yaml\n" +
		"retention plan testdata/retention/list.json\n" +
		"retention plan --policy testdata/retention/policy.yaml\n" +
		"retention plan testdata/retention/list.json --policy testdata/retention/policy.yaml --now noon\n" +
		"retention plan testdata/retention/list.json --policy testdata/retention/policy.yaml --html /nonexistent/plan.html\n" +
		"retention nonsense\n"
	golden(t, "retention.golden", s.transcript(t, script))
}

func TestRetentionPage(t *testing.T) {
	s := &stage{socket: "/nonexistent/engine.sock"}
	file := filepath.Join(t.TempDir(), "plan.html")
	out, errs, code := s.run(t, "retention", "plan", "testdata/retention/list.json", "-f", "testdata/retention/object.yaml", "--html", file)
	if code != exitOK || errs != "" || !strings.Contains(out, "SNAPSHOT") {
		t.Fatalf("exit %d: %s%s", code, out, errs)
	}
	page, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"<title>Plan of SnapshotPolicy nightly</title>", "shop/db", "keepLast 1"} {
		if !strings.Contains(string(page), want) {
			t.Errorf("the page has no %q", want)
		}
	}
}

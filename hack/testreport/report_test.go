package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// runIn makes a module with one test file and gives what testreport makes of it.
func runIn(t *testing.T, source string) (int, string, error) {
	t.Helper()
	if _, err := exec.LookPath("go"); err != nil {
		t.Skip("needs go: " + err.Error())
	}
	dir := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module example\n\ngo 1.24\n", "x_test.go": source} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var out strings.Builder
	code, err := run(dir, []string{"-count=1", "./..."}, &out)
	return code, out.String(), err
}

func TestPassAndSkip(t *testing.T) {
	code, out, err := runIn(t, `package x
import "testing"
func TestGood(t *testing.T) { t.Log("quiet") }
func TestRoot(t *testing.T) { t.Log("before: it"); t.Skip("needs root: mounts a loop device") }
`)
	if code != 0 || err != nil {
		t.Fatalf("code %d, %v\n%s", code, err, out)
	}
	for _, want := range []string{"ok  \texample", "needs root: mounts a loop device\n      example.TestRoot", "1 passed, 0 failed, 1 skipped"} {
		if !strings.Contains(out, want) {
			t.Errorf("no %q in:\n%s", want, out)
		}
	}
	if strings.Contains(out, "quiet") {
		t.Errorf("a passing test's log was printed:\n%s", out)
	}
}

func TestFailures(t *testing.T) {
	for name, c := range map[string]struct{ source, want string }{
		"a test":    {"package x\nimport \"testing\"\nfunc TestBad(t *testing.T) { t.Error(\"it broke\") }\n", "it broke"},
		"a panic":   {"package x\nimport \"testing\"\nfunc TestBad(t *testing.T) { panic(\"it broke\") }\n", "panic: it broke"},
		"no build":  {"package x\nimport \"testing\"\nfunc TestBad(t *testing.T) { nowhere() }\n", "undefined: nowhere"},
		"an exit":   {"package x\nimport (\"os\"; \"testing\")\nfunc TestBad(t *testing.T) { println(\"last words\"); os.Exit(3) }\n", "last words"},
		"main exit": {"package x\nimport (\"os\"; \"testing\")\nfunc TestMain(m *testing.M) { os.Exit(3) }\n", "FAIL\texample"},
	} {
		t.Run(name, func(t *testing.T) {
			code, out, err := runIn(t, c.source)
			if code == 0 || err != nil {
				t.Errorf("code %d, %v", code, err)
			}
			if !strings.Contains(out, c.want) || !strings.Contains(out, "1 failed") {
				t.Errorf("no %q or count in:\n%s", c.want, out)
			}
		})
	}
}

func TestNoTestRan(t *testing.T) {
	code, out, err := runIn(t, "package x\n")
	if code == 0 || err == nil {
		t.Errorf("code %d, %v:\n%s", code, err, out)
	}
}

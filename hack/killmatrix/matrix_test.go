package main

import (
	"bytes"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const output = `{"Action":"run","Test":"TestA"}
{"Action":"attr","Test":"TestA/part","Key":"kill-drawn","Value":"engine"}
{"Action":"output","Test":"TestA/part","Output":"in a part\n"}
{"Action":"attr","Test":"TestA/part","Key":"killed","Value":"engine"}
{"Action":"pass","Test":"TestA/part","Elapsed":1}
{"Action":"pass","Test":"TestA","Elapsed":3}
not of go test
{"Action":"attr","Test":"TestB","Key":"kill-drawn","Value":"engine"}
{"Action":"pass","Test":"TestB","Elapsed":2}
{"Action":"skip","Test":"TestC"}
{"Action":"attr","Test":"TestD","Key":"kill-drawn","Value":"engine"}
{"Action":"attr","Test":"TestD","Key":"killed","Value":"engine"}
{"Action":"output","Test":"TestD","Output":"why it failed\n"}
{"Action":"fail","Test":"TestD","Elapsed":4}
{"Action":"pass","Test":"TestE","Elapsed":4}
{"Action":"fail"}
`

// One run: what passed with a kill is done, what passed without one runs again, what failed is told and kept, what draws none is no part of the matrix.
func TestMatrix(t *testing.T) {
	dir := t.TempDir()
	done, err := open(dir, "", false)
	must(t, err)
	m := newMatrix([]string{"TestA", "TestB", "TestC", "TestD", "TestE"}, []string{"engine", "node-plugin"})
	if todo := m.todo("engine", done); !slices.Equal(todo, m.flows) {
		t.Errorf("to do at first: %v", todo)
	}
	must(t, read(strings.NewReader(output), func(f *flow) error { return m.note("engine", f, done) }))
	if todo := m.todo("engine", done); !slices.Equal(todo, []string{"TestB"}) {
		t.Errorf("to do again: %v", todo)
	}
	if todo := m.todo("node-plugin", done); !slices.Equal(todo, []string{"TestA", "TestB", "TestD"}) {
		t.Errorf("to do with the next process: %v", todo)
	}
	var out bytes.Buffer
	if !m.print(&out, done) {
		t.Error("no bar was missed")
	}
	for _, want := range []string{"failed: engine TestD\n", "never killed: engine TestB\n", "kill-matrix-flows 3\n", "kill-matrix-passed 1\n",
		"kill-matrix-failed 1 (bar 0)\n", "kill-matrix-never-killed 4 (bar 0)\n"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("%q is not in\n%s", want, out.String())
		}
	}
	if text, err := os.ReadFile(filepath.Join(dir, "failures", "engine-TestD.log")); err != nil || string(text) != "why it failed\n" {
		t.Errorf("kept %q, %v", text, err)
	}
}

// A run goes on where the last one of the same image was stopped, in the middle of a line, too.
func TestResultsGoOn(t *testing.T) {
	dir := t.TempDir()
	image := filepath.Join(dir, "image")
	must(t, os.WriteFile(image, []byte("one"), 0o600))
	a, b := cell{"engine", "TestA"}, cell{"engine", "TestB"}
	r, err := open(dir, image, false)
	must(t, err)
	must(t, r.add(a))
	_, err = r.file.WriteString("engine TestB") // and then the power was cut
	must(t, err)
	r, err = open(dir, image, false)
	must(t, err)
	if !r.has(a) || r.has(b) {
		t.Errorf("%v", r.done)
	}
	must(t, r.add(b))
	r, err = open(dir, image, false)
	must(t, err)
	if !r.has(a) || !r.has(b) || r.count() != 2 {
		t.Errorf("%v", r.done)
	}
	for _, change := range []func() (*results, error){
		func() (*results, error) { return open(dir, image, true) },
		func() (*results, error) {
			must(t, r.add(a))
			must(t, os.WriteFile(image, []byte("two"), 0o600))
			return open(dir, image, false)
		},
	} {
		if r, err = change(); err != nil || r.count() != 0 {
			t.Errorf("begun anew with %v, %v", r.done, err)
		}
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

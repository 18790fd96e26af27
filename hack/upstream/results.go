package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

// outcome is a line that the test binary wrote.
type outcome struct {
	Name    string  `json:"name"`
	State   string  `json:"state"`
	Reason  string  `json:"reason"`
	Seconds float64 `json:"seconds"`
	Output  string  `json:"output"`
}

// States of outcomes; every other one says that the spec failed.
const (
	passedState      = "passed"
	skippedState     = "skipped"
	interruptedState = "interrupted" // the run ended before it: neither passed nor failed
)

// store is the folder of a run's results.
type store struct{ dir string }

func (s store) results() string  { return filepath.Join(s.dir, "results.jsonl") }
func (s store) identity() string { return filepath.Join(s.dir, "identity") }
func (s store) failures() string { return filepath.Join(s.dir, "failures") }
func (s store) logs() string     { return filepath.Join(s.dir, "logs") }

// open makes the folder ready for what identity names, and says whether earlier results were of the same and go on. Others are removed.
func (s store) open(identity string, fresh bool) (goesOn bool, err error) {
	known, err := os.ReadFile(s.identity())
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return false, fmt.Errorf("read what the results are of: %w", err)
	}
	if string(known) == identity && !fresh {
		return true, errors.Join(s.makeFolders(), s.endLine())
	}
	// Only what this command makes is removed: the folder may have been named by mistake.
	for _, path := range []string{s.identity(), s.results(), s.failures(), s.logs()} {
		if err := os.RemoveAll(path); err != nil {
			return false, fmt.Errorf("remove earlier results: %w", err)
		}
	}
	if err := s.makeFolders(); err != nil {
		return false, err
	}
	if err := os.WriteFile(s.identity(), []byte(identity), 0o644); err != nil {
		return false, fmt.Errorf("write what the results are of: %w", err)
	}
	return false, nil
}

func (s store) makeFolders() error {
	for _, dir := range []string{s.dir, s.failures(), s.logs()} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("make folder for results: %w", err)
		}
	}
	return nil
}

// close ends a run that met its bars: the next one is a new one.
func (s store) close() error {
	if err := os.Remove(s.identity()); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("end the run: %w", err)
	}
	return nil
}

// endLine ends a line that was being written when the machine stopped, so that the next one is whole.
func (s store) endLine() error {
	text, err := os.ReadFile(s.results())
	if errors.Is(err, os.ErrNotExist) || err == nil && (len(text) == 0 || text[len(text)-1] == '\n') {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read results: %w", err)
	}
	f, err := os.OpenFile(s.results(), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		return fmt.Errorf("end the last result: %w", err)
	}
	_, err = f.Write([]byte("\n"))
	return errors.Join(err, f.Close())
}

// read gives all outcomes in the order in which they were written. A line that is not whole is none: its spec counts as not run.
func (s store) read() ([]outcome, error) {
	text, err := os.ReadFile(s.results())
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read results: %w", err)
	}
	var list []outcome
	for line := range bytes.Lines(text) {
		var o outcome
		if bytes.HasSuffix(line, []byte("\n")) && json.Unmarshal(line, &o) == nil && o.Name != "" {
			list = append(list, o)
		}
	}
	return list, nil
}

// history is what became of a spec.
type history struct {
	last   outcome
	failed int // times
}

func histories(list []outcome) map[string]history {
	all := map[string]history{}
	for _, o := range list {
		h := all[o.Name]
		h.last = o
		if o.failed() {
			h.failed++
		}
		all[o.Name] = h
	}
	return all
}

func (o outcome) failed() bool {
	return o.State != passedState && o.State != skippedState && o.State != interruptedState
}

// ended says whether the spec need not run again.
func (o outcome) ended() bool { return o.State == passedState || o.State == skippedState }

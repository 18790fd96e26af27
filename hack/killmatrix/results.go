package main

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// results are the cells that are done, in a file: what is tested in the first line, then a cell a line.
type results struct {
	dir  string
	done map[cell]bool
	file *os.File
}

// open goes on with what is known of the same subject, or begins anew.
func open(dir, subject string, fresh bool) (*results, error) {
	sum, err := identity(subject)
	if err != nil {
		return nil, err
	}
	r := &results{dir: dir, done: map[cell]bool{}}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("make folder for results: %w", err)
	}
	path := filepath.Join(dir, "passed")
	text, err := os.ReadFile(path)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("read results: %w", err)
	}
	first, rest, _ := strings.Cut(string(text), "\n")
	goesOn := first == sum && !fresh
	how := os.O_WRONLY | os.O_CREATE | os.O_TRUNC
	if goesOn {
		how = os.O_WRONLY | os.O_APPEND
		for line := range strings.Lines(rest) {
			// A line without its end was being written when the machine stopped.
			if words := strings.Fields(line); len(words) == 2 && strings.HasSuffix(line, "\n") {
				r.done[cell{words[0], words[1]}] = true
			}
		}
	}
	if r.file, err = os.OpenFile(path, how, 0o644); err != nil {
		return nil, fmt.Errorf("open results: %w", err)
	}
	head := sum + "\n"
	if goesOn {
		head = ""
		if !strings.HasSuffix(string(text), "\n") {
			head = "\n"
		}
	}
	if _, err := r.file.WriteString(head); err != nil {
		return nil, fmt.Errorf("write results: %w", err)
	}
	return r, nil
}

func identity(subject string) (string, error) {
	if subject == "" {
		return "unknown", nil
	}
	f, err := os.Open(subject)
	if err != nil {
		return "", fmt.Errorf("read what is tested: %w", err)
	}
	defer f.Close()
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", fmt.Errorf("read what is tested: %w", err)
	}
	return fmt.Sprintf("%x", sum.Sum(nil)), nil
}

func (r *results) has(c cell) bool { return r.done[c] }

func (r *results) count() int { return len(r.done) }

func (r *results) add(c cell) error {
	r.done[c] = true
	if _, err := fmt.Fprintf(r.file, "%s %s\n", c.process, c.flow); err != nil {
		return fmt.Errorf("write results: %w", err)
	}
	return nil
}

// keepLog of a flow that failed.
func (r *results) keepLog(c cell, text string) error {
	path := filepath.Join(r.dir, "failures", c.process+"-"+c.flow+".log")
	if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
		return fmt.Errorf("keep the log of %s: %w", c.flow, err)
	}
	return nil
}

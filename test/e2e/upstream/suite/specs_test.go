package suite

import (
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/onsi/ginkgo/v2"
	"github.com/onsi/ginkgo/v2/types"
)

// spec is a line of the list.
type spec struct {
	Name   string   `json:"name"`
	Labels []string `json:"labels,omitempty"`
	Serial bool     `json:"serial,omitempty"`
}

// outcome is a line of the results.
type outcome struct {
	Name    string  `json:"name"`
	State   string  `json:"state"` // ginkgo's: passed, failed, skipped, timedout, panicked, interrupted, aborted
	Reason  string  `json:"reason,omitempty"`
	Seconds float64 `json:"seconds"`
	Process int     `json:"process"`
	Output  string  `json:"output,omitempty"` // file of what a failed spec wrote
}

func writeList(file string) error {
	var out bytes.Buffer
	for _, s := range ginkgo.PreviewSpecs("list").SpecReports {
		if s.LeafNodeType != types.NodeTypeIt {
			continue
		}
		line, err := json.Marshal(spec{s.FullText(), s.Labels(), s.IsSerial})
		if err != nil {
			return err
		}
		out.Write(append(line, '\n'))
	}
	if err := os.WriteFile(file, out.Bytes(), 0o644); err != nil {
		return fmt.Errorf("write the list of specs: %w", err)
	}
	return nil
}

// chosen are the specs that were asked for; nil: all.
var chosen map[string]bool

// choose makes ginkgo run what the file names. A name on the command line would have to fit on it, and ginkgo takes expressions, not names.
func choose(file string) error {
	if file == "" {
		return flag.Set("ginkgo.focus", ".") // Kubernetes leaves out tests of features unless something is asked for
	}
	text, err := os.ReadFile(file)
	if err != nil {
		return fmt.Errorf("read the specs to run: %w", err)
	}
	chosen = map[string]bool{}
	for line := range strings.Lines(string(text)) {
		name := strings.TrimSuffix(line, "\n")
		if name == "" {
			continue
		}
		chosen[name] = true
		// Ginkgo matches against the suite's name and the spec's: no anchor at the start. A spec whose name ends in another's is told apart by record.
		if err := flag.Set("ginkgo.focus", " "+regexp.QuoteMeta(name)+"$"); err != nil {
			return err
		}
	}
	if len(chosen) == 0 {
		return fmt.Errorf("no spec to run in %s", file)
	}
	return nil
}

func record(report ginkgo.SpecReport) error {
	name := report.FullText()
	if report.LeafNodeType != types.NodeTypeIt || chosen != nil && !chosen[name] || options.results == "" {
		return nil
	}
	if report.State.Is(types.SpecStateSkipped|types.SpecStatePending) && report.Failure.Message == "" {
		return nil // filtered, or the run was interrupted before its turn
	}
	result := outcome{Name: name, State: report.State.String(), Reason: report.Failure.Message, Seconds: report.RunTime.Seconds(),
		Process: report.ParallelProcess}
	var saved error
	if report.Failed() && options.failures != "" {
		result.Output = filepath.Join(options.failures, fmt.Sprintf("%x.log", sha256.Sum256([]byte(name)))[:16]+".log")
		saved = os.WriteFile(result.Output, failureText(report), 0o644)
	}
	line, err := json.Marshal(result)
	if err != nil {
		return errors.Join(err, saved)
	}
	f, err := os.OpenFile(options.results, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return errors.Join(fmt.Errorf("record %q: %w", name, err), saved)
	}
	_, err = f.Write(append(line, '\n'))
	if err := errors.Join(err, f.Close(), saved); err != nil {
		return fmt.Errorf("record %q: %w", name, err)
	}
	return nil
}

func failureText(report ginkgo.SpecReport) []byte {
	var text bytes.Buffer
	fmt.Fprintf(&text, "%s\n%s after %.1f s\n\n%s\n%s\n", report.FullText(), report.State, report.RunTime.Seconds(), report.FailureMessage(),
		report.FailureLocation())
	for _, more := range report.AdditionalFailures {
		fmt.Fprintf(&text, "\nalso: %s\n%s\n", more.Failure.Message, more.Failure.Location)
	}
	fmt.Fprintf(&text, "\n%s\n%s\n", report.CapturedGinkgoWriterOutput, report.CapturedStdOutErr)
	return text.Bytes()
}

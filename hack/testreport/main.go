// Command testreport runs `go test -json` with the arguments given, prints what plain `go test` would, and at the end lists the tests that were left out
// and why. It exits with go test's code, or 1 where no test ran at all.
//
// A test that cannot run here skips with a reason that starts with "needs root:" or "needs <tool>:"; other skips are listed under their own reason.
package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
)

func main() {
	code, err := run(".", os.Args[1:], os.Stdout)
	if err != nil {
		fmt.Fprintln(os.Stderr, "testreport:", err)
		code = 1
	}
	os.Exit(code)
}

// run tests in a folder and gives the code to exit with.
func run(dir string, args []string, out io.Writer) (int, error) {
	cmd := exec.Command("go", append([]string{"test", "-json"}, args...)...)
	cmd.Dir = dir
	cmd.Stderr = os.Stderr
	pipe, err := cmd.StdoutPipe()
	if err != nil {
		return 1, err
	}
	if err := cmd.Start(); err != nil {
		return 1, fmt.Errorf("start go test: %w", err)
	}
	rep := newReport(out)
	lines := bufio.NewReader(pipe)
	for {
		line, err := lines.ReadBytes('\n')
		if len(line) > 0 {
			rep.line(line)
		}
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return 1, fmt.Errorf("read go test's output: %w", err)
		}
	}
	err = cmd.Wait()
	rep.close()
	var exit *exec.ExitError
	switch {
	case errors.As(err, &exit):
		return max(exit.ExitCode(), 1), nil
	case err != nil:
		return 1, fmt.Errorf("wait for go test: %w", err)
	case rep.failed > 0:
		return 1, nil
	case rep.passed == 0:
		return 1, errors.New("no test ran")
	}
	return 0, nil
}

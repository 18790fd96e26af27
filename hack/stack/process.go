package stack

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

const (
	stopPatience = 30 * time.Second // for a process that was told to end
	tailLines    = 25
)

// process is a program that may be started again after its end.
type process struct {
	name, program, log string
	args               []string

	mu   sync.Mutex
	cmd  *exec.Cmd
	done chan struct{} // closed at its end
	err  error         // how it ended
}

func (s *Stack) process(name, program string, args ...string) *process {
	return &process{name: name, program: filepath.Join(s.cfg.Bin, program), args: args, log: filepath.Join(s.cfg.Logs, name+".log")}
}

func (p *process) start() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.cmd != nil {
		select {
		case <-p.done:
		default:
			return fmt.Errorf("start %s: it runs already", p.name)
		}
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	defer log.Close()
	cmd := exec.Command(p.program, p.args...)
	cmd.Stdout, cmd.Stderr = log, log
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // a Ctrl-C is for us: they are ended in order
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("start %s: %w", p.name, err)
	}
	done := make(chan struct{})
	p.cmd, p.done, p.err = cmd, done, nil
	go func() {
		err := cmd.Wait()
		p.mu.Lock()
		p.err = err
		p.mu.Unlock()
		close(done)
	}()
	return nil
}

// ended is closed when the process has ended.
func (p *process) ended() <-chan struct{} {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.done
}

// result says how the process ended.
func (p *process) result() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		return errors.New("exit status 0")
	}
	return p.err
}

func (p *process) signal(sig os.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.cmd.Process.Signal(sig); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return fmt.Errorf("send %v to %s: %w", sig, p.name, err)
	}
	return nil
}

// kill ends the process at once. One that does not run is no error.
func (p *process) kill() error {
	if p == nil || p.ended() == nil {
		return nil
	}
	if err := p.signal(syscall.SIGKILL); err != nil {
		return err
	}
	if !p.ends(stopPatience) {
		return fmt.Errorf("%s (process %d) does not end although it was killed: it hangs in the kernel", p.name, p.cmd.Process.Pid)
	}
	return nil
}

// ends waits for the process's end.
func (p *process) ends(patience time.Duration) bool {
	select {
	case <-p.ended():
		return true
	case <-time.After(patience):
		return false
	}
}

// dump has a Go program write all its goroutines to its log, which ends it.
func (p *process) dump() error {
	if p == nil || p.ended() == nil {
		return nil
	}
	if err := p.signal(syscall.SIGQUIT); err != nil {
		return err
	}
	p.ends(stopPatience) // else it is killed next
	return nil
}

// stop ends the process in order, and kills it when that takes too long or ctx ends.
func (p *process) stop(ctx context.Context) error {
	if p == nil || p.ended() == nil {
		return nil
	}
	select {
	case <-p.ended():
		return fmt.Errorf("%s had ended before it was told to: %w; its log ends with\n%s", p.name, p.result(), p.tail())
	default:
	}
	if err := p.signal(syscall.SIGTERM); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, stopPatience)
	defer cancel()
	select {
	case <-p.ended():
		if err := p.result(); err.Error() != "exit status 0" {
			return fmt.Errorf("%s ended with %w; its log ends with\n%s", p.name, err, p.tail())
		}
		return nil
	case <-ctx.Done():
		return errors.Join(fmt.Errorf("%s did not end in time; its log ends with\n%s", p.name, p.tail()), p.kill())
	}
}

// tail is the end of the log.
func (p *process) tail() string {
	text, err := os.ReadFile(p.log)
	if err != nil {
		return err.Error()
	}
	lines := bytes.Split(bytes.TrimRight(text, "\n"), []byte("\n"))
	return string(bytes.Join(lines[max(0, len(lines)-tailLines):], []byte("\n")))
}

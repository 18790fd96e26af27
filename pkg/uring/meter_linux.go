package uring

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// meterEvery requests somebody looks at the meter, which reads the kernel's figures meterPause apart: they count in hundredths of a second, and
	// on a machine of many processors reading them takes a millisecond.
	meterEvery = 256
	meterPause = 100 * time.Millisecond
	// Processors are short when less than busyBelow of their time was idle, until more than idleAbove was. The ring itself leaves them more of it.
	busyBelow = 0.15
	idleAbove = 0.40
)

// meter tells whether the machine's processors are short. Nobody watches while there is no I/O.
type meter struct {
	busy atomic.Bool

	mu          sync.Mutex
	file        *os.File
	off         bool // the figures cannot be had: never busy
	last        time.Time
	idle, total uint64
}

func (m *meter) look() {
	if !m.mu.TryLock() {
		return
	}
	defer m.mu.Unlock()
	now := time.Now()
	since := now.Sub(m.last)
	if m.off || since < meterPause {
		return
	}
	idle, total, err := m.read()
	if err != nil {
		m.off = true
		m.busy.Store(false)
		return
	}
	// What happened long ago, before a pause, says nothing of now.
	if spent := total - m.total; since < 10*meterPause && total > m.total && idle >= m.idle {
		m.busy.Store(judge(m.busy.Load(), float64(idle-m.idle)/float64(spent)))
	}
	m.last, m.idle, m.total = now, idle, total
}

// judge says whether processors are short, given whether they were.
func judge(was bool, idle float64) bool {
	if was {
		return idle <= idleAbove
	}
	return idle < busyBelow
}

func (m *meter) read() (idle, total uint64, err error) {
	if m.file == nil {
		if m.file, err = os.Open("/proc/stat"); err != nil {
			return 0, 0, err
		}
	}
	var b [512]byte
	n, err := m.file.ReadAt(b[:], 0)
	if n == 0 && err != nil {
		return 0, 0, err
	}
	return parseStat(b[:n])
}

// ProcessorTime tells how much time the machine's processors have been idle since it started, and how much there was in all, in hundredths of a second
// summed over processors.
func ProcessorTime() (idle, total uint64, err error) {
	var m meter
	defer func() { _ = m.close() }()
	return m.read()
}

// parseStat reads the first line of /proc/stat: "cpu", then the time spent in user, nice, system, idle, iowait and other states (proc_stat(5)).
func parseStat(b []byte) (idle, total uint64, err error) {
	line, _, found := bytes.Cut(b, []byte("\n"))
	fields := bytes.Fields(line)
	if !found || len(fields) < 6 || string(fields[0]) != "cpu" {
		return 0, 0, fmt.Errorf("/proc/stat begins with %q: want a line of at least 5 figures for all processors", line)
	}
	for i, f := range fields[1:min(len(fields), 9)] { // guests' time is in user's already
		v, err := strconv.ParseUint(string(f), 10, 64)
		if err != nil {
			return 0, 0, fmt.Errorf("/proc/stat, figure %d: %w", i+1, err)
		}
		total += v
		if i == 3 || i == 4 {
			idle += v
		}
	}
	return idle, total, nil
}

func (m *meter) close() error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.off = true
	m.busy.Store(false)
	if m.file == nil {
		return nil
	}
	return m.file.Close()
}

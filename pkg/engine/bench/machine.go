package bench

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/pkg/uring"
)

// Machine describes where the run was made.
func Machine() string {
	kernel := "unknown kernel"
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		kernel = unix.ByteSliceToString(u.Sysname[:]) + " " + unix.ByteSliceToString(u.Release[:])
	}
	model := "unknown processor"
	if text, err := os.ReadFile("/proc/cpuinfo"); err == nil {
		for line := range strings.Lines(string(text)) {
			if k, v, ok := strings.Cut(line, ":"); ok && strings.TrimSpace(k) == "model name" {
				model = strings.TrimSpace(v)
				break
			}
		}
	}
	return fmt.Sprintf("%d cores, %s, %s, %s", runtime.NumCPU(), model, kernel, runtime.Version())
}

// usage is processor time since boot, in seconds: of all programs, and of this one and those it ran.
type usage struct{ total, busy, own float64 }

// readUsage reads it; where the system does not tell, all is zero.
func readUsage() (u usage) {
	idle, total, err := uring.ProcessorTime()
	if err != nil {
		return u
	}
	const perSecond = 100
	u.total, u.busy = float64(total)/perSecond, float64(total-idle)/perSecond
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		if unix.Getrusage(who, &r) == nil {
			u.own += float64(r.Utime.Nano()+r.Stime.Nano()) / 1e9
		}
	}
	return u
}

// elsewhere is what part of the machine's processors others used between two readings.
func (u usage) elsewhere(later usage) float64 {
	if later.total <= u.total {
		return 0
	}
	return max(later.busy-u.busy-(later.own-u.own), 0) / (later.total - u.total)
}

// residentBytes is the memory of this process that is in RAM.
func residentBytes() (int64, error) {
	text, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 0, fmt.Errorf("read memory in use: %w", err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "VmRSS:"); ok {
			kib, err := strconv.ParseInt(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(rest), "kB")), 10, 64)
			if err != nil {
				return 0, fmt.Errorf("read memory in use: %w", err)
			}
			return kib << 10, nil
		}
	}
	return 0, errors.New("read memory in use: /proc/self/status has no VmRSS")
}

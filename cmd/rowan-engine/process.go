package main

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"strconv"

	"golang.org/x/sys/unix"
	"k8s.io/klog/v2"
)

const (
	// minProcs: blocking direct I/O needs it. A goroutine in a system call keeps its processor until the runtime notices; at the number of cores
	// random reads came to little more than half.
	minProcs = 32
	// oomScore: who kills the engine stops every device of the node.
	oomScore = -900
	// flusherDone marks the process that was executed again by becomeFlusher.
	flusherDone = "ROWAN_ENGINE_FLUSHER"
	// checkedThreads is on how many threads the flusher's mark is looked for.
	checkedThreads = 4
)

// becomeFlusher marks the process as one that the kernel's memory reclaim may wait for (PR_SET_IO_FLUSHER), so that its own allocations never
// wait for the devices it serves. The mark is a thread's and goes to the threads it makes: it is set on one thread, which then executes the
// program again.
func becomeFlusher() error {
	if os.Getenv(flusherDone) != "" {
		os.Unsetenv(flusherDone) // the keeper is not to take it for its own
		return checkFlusher()
	}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	if err := unix.Prctl(unix.PR_SET_IO_FLUSHER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("mark the process as an I/O flusher (needs CAP_SYS_RESOURCE): %w", err)
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find our own program: %w", err)
	}
	return fmt.Errorf("execute %s again: %w", self, unix.Exec(self, os.Args, append(os.Environ(), flusherDone+"=1")))
}

// checkFlusher looks for the mark on several threads.
func checkFlusher() error {
	results := make(chan error)
	release := make(chan struct{})
	for range checkedThreads {
		go func() {
			runtime.LockOSThread() // each holds a thread until all have looked
			defer runtime.UnlockOSThread()
			got, err := unix.PrctlRetInt(unix.PR_GET_IO_FLUSHER, 0, 0, 0, 0)
			if err == nil && got != 1 {
				err = errors.New("a thread is not marked as an I/O flusher")
			}
			results <- err
			<-release
		}()
	}
	var errs []error
	for range checkedThreads {
		errs = append(errs, <-results)
	}
	close(release)
	return errors.Join(errs...)
}

// gcPercent lets the heap grow to five times what lives on it, some ten megabytes, before the next collection. At Go's 100 there was one every 25 ms
// under load, each with all processors stopped for a millisecond.
const gcPercent = 400

// setUpProcess makes the process one that devices can depend on. What the machine refuses is logged, and worked without.
func setUpProcess(memoryLimit int64) {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(max(minProcs, runtime.NumCPU()))
	}
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	if os.Getenv("GOMEMLIMIT") == "" {
		debug.SetMemoryLimit(memoryLimit)
	}
	raiseFileLimit()
	if err := lockMemory(); err != nil {
		klog.InfoS("memory is not locked: under memory pressure devices may stall", "err", err)
	}
	if err := os.WriteFile("/proc/self/oom_score_adj", []byte(strconv.Itoa(oomScore)), 0); err != nil {
		klog.InfoS("the engine may be killed when memory runs out", "err", err)
	}
}

// lockMemory keeps every page that was touched in memory. Without the right to lock as much as it takes, later allocations would fail, so then it
// locks nothing.
func lockMemory() error {
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	if err := unix.Setrlimit(unix.RLIMIT_MEMLOCK, &unlimited); err != nil && !mayLockAnything() {
		return fmt.Errorf("raise the limit of locked memory (needs CAP_IPC_LOCK or ulimit -l unlimited): %w", err)
	}
	if err := unix.Mlockall(unix.MCL_CURRENT | unix.MCL_FUTURE | unix.MCL_ONFAULT); err != nil {
		return fmt.Errorf("lock memory: %w", err)
	}
	return nil
}

// mayLockAnything: CAP_IPC_LOCK is above the limit.
func mayLockAnything() bool {
	var now unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_MEMLOCK, &now); err == nil && now.Cur == unix.RLIM_INFINITY {
		return true
	}
	var caps [2]unix.CapUserData // two words in version 3
	err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &caps[0])
	return err == nil && caps[0].Effective&(1<<unix.CAP_IPC_LOCK) != 0
}

// fileLimit is enough for the segments of a 64 TiB pool, and for a keeper's descriptors.
const fileLimit = 1 << 17

func raiseFileLimit() {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || l.Cur >= fileLimit {
		return
	}
	want := unix.Rlimit{Cur: fileLimit, Max: max(l.Max, fileLimit)}
	err := unix.Setrlimit(unix.RLIMIT_NOFILE, &want)
	if err != nil {
		want = unix.Rlimit{Cur: l.Max, Max: l.Max}
		err = errors.Join(err, unix.Setrlimit(unix.RLIMIT_NOFILE, &want))
		klog.InfoS("few files may be open", "limit", l.Max, "wanted", fileLimit, "err", err)
	}
}

// Package uring does direct file I/O either by plain system calls or through one io_uring, whichever is cheaper at the moment.
//
// A blocking pread or pwrite keeps a thread for as long as the disk takes; ending it costs a context switch. Through the ring one thread talks to the
// kernel for all callers, and submissions and completions cross in batches that grow as the machine gets busier: a third less processor for each
// request, but two more hand-overs between threads, which show while processors are idle. So IO asks the ring only where processors are short and
// several requests are under way. docs/design/io-uring.md has the measurements.
//
// Contract: a call returns when its I/O has ended, never earlier, so the buffer is the caller's again. Requests outlive the process when it is killed:
// the kernel goes on with what was submitted and holds the files open meanwhile, so a flock on the same descriptor tells when it has ended.
//
// Limits: Linux 6.1 (IORING_SETUP_DEFER_TASKRUN). Where the kernel is older or forbids io_uring (kernel.io_uring_disabled, seccomp), New says so with
// ErrUnavailable.
package uring

// Package bench measures an engine on the machine it runs on, and holds the figures against the bars that Rowan promises.
//
// Contract: Run makes what it needs in a folder of its own under Config.Dir (a plain file and pools, in a directory each) and a ring folder on a tmpfs,
// measures, and removes all of it, also when its context ends. What is compared is measured in turn, round by round, on one file system in one run, and
// told as the median of the rounds: absolute figures of a shared machine drift. The plain file is written in full first and driven by fio with io_uring
// and direct I/O; the engine is driven in this process through block.Device, by as many goroutines as the depth, each with an aligned buffer of its own.
//
// Limits: blocking direct I/O needs GOMAXPROCS of 32 or more, which the caller sets. It needs fio in PATH, and the space that Config.Size asks for: about
// four times that, and 16 GiB for the latency and the memory part each, besides a plain file. Run says how much is missing before it begins.
package bench

// Package fuseloop attaches a block.Device through two things every kernel has: a FUSE file system with one file, served by this process, and a loop
// device with direct I/O on that file.
//
//	guest → /dev/loopN → loop driver → FUSE file (direct I/O) → /dev/fuse → server → block.Device
//
// The mount is attached to no folder (fsmount): its file is held by the loop device and by O_PATH descriptors. The keeper process (package keeper)
// holds the /dev/fuse descriptor and an O_PATH descriptor of the file, so both outlive the server: after a SIGKILL requests wait, and Resume fetches
// the descriptors, has the kernel send again what the dead process had read, and serves on. The keeper also makes every system call that may wait for
// the server (package loopdev), because a process that is killed while it waits for itself never ends. See docs/design/attach-fuseloop.md.
//
// Needs CAP_SYS_ADMIN (and CAP_MKNOD where /dev lacks nodes), /dev/fuse, /dev/loop-control, and kernel 6.9 for takeover (FUSE_HAS_RESEND); without a
// keeper 6.1 does, but then devices die with the process, and one that is killed during Attach, Resize or Detach may hang. Run with GOMAXPROCS of at
// least 32: readers and the device's I/O block in system calls, and a processor that is stuck in one is noticed late.
//
// Limits: at most Config.Readers requests of an attachment are under way, each in a thread, so attachments × Readers must stay below Go's limit of
// 10,000 threads. Request payloads take Config.Memory bytes, and 1 MiB more for each attachment at worst. A flush or a discard holds up the requests
// that the loop driver queued behind it (one queue for each cgroup). loop shows one sector size: physical equals logical.
package fuseloop

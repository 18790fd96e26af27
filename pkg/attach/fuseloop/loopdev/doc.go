// Package loopdev puts loop devices before FUSE files, and takes them away. It is apart from the server of those files because most of what it does
// may wait for that server: a process that waits for itself cannot be killed (SIGKILL leaves it in uninterruptible sleep, with all its descriptors,
// until somebody answers, and nobody can). So the server has its Works carried out by the keeper process, which outlives it; only without a keeper
// does it do them itself. What merely reads sysfs (Find, Size, Check, Path) asks no server.
//
// A device is known by its file's name, which the caller never uses twice. Every Work can be repeated, and finishes what an interrupted one left.
//
// Limits: Linux; CAP_SYS_ADMIN. Works of one name are not to be carried out at once; the caller sees to that. While a Show waits in LOOP_CONFIGURE
// for a server that is away, the kernel offers that device as a free one, and others on the machine who take it (losetup --find) wait as well.
package loopdev

// Package stack runs Rowan on this machine for as long as a demonstration or a test takes: keeper, engine and, if wanted, the CSI driver (--standalone),
// with one pool on an XFS file system in a file, all of it in a temporary folder.
//
// Contract: Start returns when everything answers. Close ends it in order, by force where order fails, and then looks for what is left: processes,
// mounts, loop devices, files. Whatever it finds is an error. A Start that fails has closed already. Close may be called more than once.
//
// Limits: needs root, /dev/fuse, loop devices and a tmpfs for the ring (/run, else /dev/shm). What is mounted of the volumes has to be below Stack.Dir to
// be unmounted by Close. A process that is killed itself leaves its stack behind.
package stack

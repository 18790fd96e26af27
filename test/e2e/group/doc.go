// Package group proves that a group of snapshots is one moment, on real devices: writers write to all of its volumes in an order, and what is restored of
// each cut is always a beginning of that order. TestGroupCuts does so through the CSI services and the kernel; it needs root. Layout and its judge are for
// other writers, too: test/e2e has one in a pod.
//
// Contract: a writer sends a record when the one before has returned, whichever their volumes. Of every cut, every writer's records are a prefix; the last
// of them knows of no record of another writer that the cut lacks; all that had returned before the cut was asked for are in, none that was sent after
// its answer. A record that is torn, or where it was never written, is an error.
package group

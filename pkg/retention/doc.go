// Package retention decides which snapshots a policy takes and which it prunes. It is pure: everything it knows comes in as plain values (the policy,
// the snapshots, the time), and what it decides goes out as values, each with its reason. It does no I/O, reads no clock and keeps nothing between
// calls.
//
// # Contract
//
// [New] reads a policy's spec and refuses what is wrong, naming each field; [Rules.Ruled] says what a policy without a usable retention does: it prunes
// nothing. [Rules.Plan] decides about snapshots: exactly one [Decision] for each. [Rules.Run] decides what is to be taken of a source now.
//
// The order of the rules is the order of their strength:
//
//  1. What is never pruned: unmanaged, held, in use, being deleted already, dated ahead, and everything of a source that has one dated ahead.
//  2. The floor: the newest minKeep ready snapshots of a source.
//  3. The ceilings: maxAge, maxCount, and the pool's pressure.
//  4. The keep rules, ORed: keepLast, hourly, daily, weekly, monthly, yearly, within. Where there is none, all is kept.
//
// The snapshots of a source that is gone follow afterSourceDeleted instead, if the policy has it; nothing but 1 stands above that.
//
// A snapshot goes only if every scope it belongs to lets it go: a scope is a schedule with a retention of its own, or the policy's retention for all
// others. One pass prunes at most max(10, 10 %) of the policy's snapshots, the oldest of each source first, the sources in turn; the rest waits.
//
// # Limits
//
// A snapshot's time is what its storage said (CreatedAt); a snapshot without one is not ready. Sources are told apart by an opaque key (a PVC's UID,
// or a group's namespace and label value), never by name. Times are kept to the second. Hours that a zone repeats are two buckets; days, weeks,
// months and years are not split by a change of the offset. Zones come from the process's zone data: binaries import time/tzdata.
package retention

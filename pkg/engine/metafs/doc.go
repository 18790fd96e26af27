// Package metafs puts Pebble on the engine's file system: a vfs.FS over fsys.FS whose log files are made for synced commits.
//
// # Log files
//
// A synced commit of Pebble's own file system is a buffered write and an fdatasync that also has to journal the file's new size. Here a log is in a
// file that was written with zeroes and synced before, appends gather in aligned memory, and a sync is one direct write with RWF_DSYNC of whole
// 4096-byte blocks: from the block that holds the end of what was synced before to the one that holds the new end, padded with zeroes.
//
// # Slots
//
// When a memtable is full Pebble begins another log, and its writers wait for that. Nothing in it may need a commit of the file system's journal,
// which takes 5 to 15 ms on a busy disk: so logs have no names in the file system. Pebble keeps them in the folder "log", in which there are slots,
// files whose names never change, and the first block of a slot (its header) says the number of the log behind it. The folder's list, a log's name
// and its size are made up from the headers, which are read once as the DB opens. The order, which keeps the promise that a synced commit is found
// again:
//
//  1. A slot is made: zeroes, synced; then its name; then the folder, synced. That is in the background, or while a DB is young and has no logs to recycle. Slots
//     found by a process that has just begun may lack the last; their folder is synced before the first is used.
//  2. A log is created or recycled: the header, with RWF_DSYNC, in one sector; then the call returns. The log is as durable as if its name had been
//     synced, so Pebble's sync of that folder, and of that folder only, does nothing. Tables, manifest and markers lie in the folder above.
//  3. Records.
//
// So a header is torn by nothing, no record is in a slot whose header does not say so, and a crash before 2 ends leaves what the slot held: nothing,
// or a log that Pebble removed or recycled. Pebble does that only below the lowest log number that the synced manifest says is needed, ignores such a
// log when it opens, and removes it again. Numbers are not given twice: Pebble counts on from the highest log it finds, and every log with a record
// is found. A removed log's slot is used for the next; beyond four of those it is removed. Names of slots are not used twice by one process, and by
// the next one only after the folder was synced, so no unsynced removal and unsynced creation meet in one name: any subset of the folder's changes
// may survive.
//
// A slot with only zeroes in its first two blocks has no log. Any other without a valid header is damage, and so are two slots of one log: then the
// DB does not open, rather than without some of its commits. Opening for looking only changes nothing.
//
// The log number that Pebble's own records carry does not do instead: a log without a valid first record has none, so its number might be given
// twice, with records of the first one left behind it; and it would tie us to Pebble's format.
//
// # Torn writes
//
// Why a torn write loses nothing that was synced: a sector (512 bytes, or 4096 where the device says so) holds either its old bytes or the new ones.
// The only block written twice is the one with the end of the synced bytes; its new content begins with the same synced bytes, so they are there in
// either case. Behind them a crash may leave any mixture of sectors of the last, unacknowledged write, zeroes, and records of the file's earlier
// life. Pebble's reader takes all of that for the end of the log: zeroes are no chunk; a chunk with another log number or a wrong checksum is none
// either; and a later chunk cannot prove the mixture to be damage, because the offset of synced bytes it carries is at most that of the last sync.
// TestCrash runs this with every kind of tear.
//
// # Failures
//
// Pebble answers an error of a log or of a folder's sync with a panic, some of them on goroutines of its own. So such an error never reaches it:
// Config's OnFatal is told, and the goroutine parks for ever, as it does in Fatalf. The pool's owner marks it failed, answers whoever waits, and
// leaves the DB alone: neither SyncWait nor Close of it return any more. Errors of other files are returned, and Pebble retries (tables) or calls
// Fatalf (manifest). The exception is pebble.Open once it has written a table (opening.go): no error reaches it from there on. Call Opened when it has
// returned. ENOSPC is different: OnNoSpace may free some space, and the call is tried again.
package metafs

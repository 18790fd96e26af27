// Package metafs puts Pebble on the engine's file system: a vfs.FS over fsys.FS whose log files are made for synced commits.
//
// # Log files
//
// A synced commit of Pebble's own file system is a buffered write and an fdatasync that also has to journal the file's new size. Here a *.log file is
// written with zeroes and synced before it gets its name, appends gather in aligned memory, and a sync is one direct write with RWF_DSYNC of whole
// 4096-byte blocks: from the block that holds the end of what was synced before to the one that holds the new end, padded with zeroes. Files come from
// a spare that is prewritten in the background, and from Pebble's recycling.
//
// Why a torn write loses nothing that was synced: a sector (512 bytes, or 4096 where the device says so) holds either its old bytes or the new ones.
// The only block written twice is the one with the end of the synced bytes; its new content begins with the same synced bytes, so they are there in
// either case. Behind them a crash may leave any mixture of sectors of the last, unacknowledged write, zeroes, and records of the file's earlier life.
// Pebble's reader takes all of that for the end of the log: zeroes are no chunk; a chunk with another log number or a wrong checksum is none either; and
// a later chunk cannot prove the mixture to be damage, because the offset of synced bytes it carries is at most that of the last sync. TestCrash runs
// this with every kind of tear.
//
// # Failures
//
// Pebble answers an error of a log or of a folder's sync with a panic, some of them on goroutines of its own. So such an error never reaches it: Config's
// OnFatal is told, and the goroutine parks for ever, as it does in Fatalf. The pool's owner marks it failed, answers whoever waits, and leaves the DB
// alone: neither SyncWait nor Close of it return any more. Errors of other files are returned, and Pebble retries (tables) or calls Fatalf (manifest).
// The exception is pebble.Open once it has written a table (opening.go): no error reaches it from there on. Call Opened when it has returned.
// ENOSPC is different: OnNoSpace may free some space, and the call is tried again.
package metafs

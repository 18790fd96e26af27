// Package flushlog makes a guest's flush durable without a commit of the metadata store: a file of records, each the runs that were published since the
// record before it.
//
// A flush of one guest's first write is a data write's flush, and then something durable that says where the data is. With the metadata store that is a
// batch, handed to its committer, from there to the store's log writer, from there to whoever waits for syncs, and back: as much time as the disk takes.
// Here the flushing goroutine writes one block, with RWF_DSYNC, and is done. The runs stay pending, in the ring and in memory, and are committed with
// those that come after them.
//
// The log is the ring's shadow on the disk: after a power cut, when the ring is gone, it has what the ring had when the last flush returned, as far as no
// commit has it. Promises kept here:
//
//   - A record is not written over before all that it holds is committed durably. The caller says up to where that is (Append, committed).
//   - A record is whole or it is not there: it is one block with a checksum. Records are written one at a time, each when the one before is durable. So
//     only the newest may be torn, and nobody has been told of that one.
//   - A record that is there in full was written by this pool: it names it. One that was written and never told of does no harm: its data was flushed
//     before it was written.
//
// The file is written with zeroes and synced before its first record, so that no record's write has anything to journal.
package flushlog

// Package engine is Rowan's block engine: pools of node-local storage, thin volumes in them, and snapshots that cost nothing to take, restore and delete.
//
// # Guarantees
//
//   - A write that returned is visible to every later read, and survives the death of the process (SIGKILL included) once it returned: the kernel above
//     believes it has it. It survives a power cut once a Flush that began after it returned has returned.
//   - After a power cut every 512-byte sector holds its last flushed content or any later write of its own, never bytes of another volume. (Where the
//     member's sectors are 4096 bytes, that holds for whole blocks.)
//   - A snapshot holds every write that returned before CreateSnapshot was called and none that was sent after it answered. Nothing changes it later.
//     When CreateSnapshot has returned, it survives a power cut.
//   - The snapshots of a group are of one moment: they hold no write without those, to any volume of the group, that had returned when it was sent. All of
//     them are taken or none.
//   - Taking, restoring and deleting a snapshot, cloning and rolling back are one commit each, whatever the size. No data is copied, then or later.
//     Deleting works in a full pool.
//   - Writes to a thick volume never lack space. Of a full pool, overwrites of what a volume owns, reads and deletes go on.
//   - A failed flush is final. The pool takes no more writes in this boot, says why, and serves what can be read.
//   - A frozen block that has a checksum is what was written when Scrub says so. Checksums come in the background, some time after the freeze; what is a
//     head's to overwrite has none. No power cut leaves a wrong one.
//   - A pool is open in one process at a time, and none of a dead process's I/O is under way when it is opened.
//
// # How it works
//
// A volume is a stack of layers. A layer is a set of generations; every head gets a new one. A run (volume block, length, place) belongs to the generation
// that wrote it and never changes hands: a snapshot freezes the head and puts an empty one on top, and what a volume shows at a block is the newest run of
// its ancestry there. Runs are kept in Pebble, keyed so that a page of 1,024 blocks is one short scan, newest first. Every pool block in use belongs to
// exactly one run, so nothing is counted.
//
// Writes to blocks that the head owns go to their place. All others are redirected: new block, data, then an entry in the ring (which is what survives
// SIGKILL), then the map; the run itself goes into the next commit. A Flush is a round: flush the device, and commit what is pending, synced, or
// write it to the flush log.
//
// Where things are: pool.go and open.go (life of a pool), volumes.go, cut.go, snapshots.go and diff.go (operations), volume.go, write.go, discard.go
// (the data path), pages.go (the flattened map and pending runs), round.go (making them durable), store.go (the committer), edit.go (changing a
// page's runs), retire.go and jobs.go (what deletes leave behind), sums.go, summing.go and scrub.go (checksums of frozen blocks), prepare.go and
// space.go (space ahead of need, giving it back), check*.go (verifying it all), repair.go (deriving what can be). format/FORMAT.md has the bytes.
//
// # Limits
//
// Volumes of 1 MiB to 64 TiB in steps of 1 MiB; pools from 256 MiB; names of 1 to 128 bytes; groups of 1 to 256 snapshots. Memory:
// the map cache (128 MiB by default), about 100 bytes for every pending write (262,144 at most), the catalogue (about 1 KiB a volume or snapshot), and
// per segment of 1 GiB some 300 bytes.
package engine

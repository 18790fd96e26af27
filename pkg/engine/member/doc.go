// Package member is a member of a pool: a folder on XFS or ext4 with the pool's superblock, its segments, and the two helper files that flush the device
// and hold space back. FORMAT.md in package format tells what lies where.
//
// Contract:
//   - One Member a folder at a time, on the whole machine: Create and Open take the flock of the flush file, which is never replaced, and of every
//     segment, on the very descriptors that are used for I/O, before they read anything they rely on. They wait up to Options.LockTimeout, because
//     requests of a killed engine may outlive it.
//   - ReadAt and WriteAt are direct I/O. What WriteAt wrote is durable when a Flush that began after it returned has returned nil. A failed Flush is
//     final: every later one fails with the same error.
//   - Segments are sparse. Reserve takes a range's space; writes there make the next Flush cost a sync of their segment each, until the caller knows that
//     all of a chunk was written, with data or by Zero, and says so (MarkWritten). What a process before this one wrote there and did not flush counts as
//     unsynced when the caller says so (MarkUnsynced).
//   - The caller closes the metadata store in MetaDir before the member.
//
// All methods but Close and Destroy may be called at once from many goroutines. Limits: 1,000,000 segments (976 TiB), each of which costs a descriptor
// while the member is open; and one device under the file system, or one whose flush reaches all.
//
// Folders are reached through fsys.FS. Block devices are not: blkid, wipefs, mkfs.xfs and mount(2) work on the machine itself.
package member

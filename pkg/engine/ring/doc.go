// Package ring keeps the writes a pool has acknowledged and not yet committed where a dead process cannot lose them: in a file on a tmpfs, mapped and
// locked in memory. A write that was acknowledged survives kill -9 of the engine; it does not survive a reboot, and need not: it was not flushed.
//
// Contract: an entry whose Append returned is found by Replay in any later process of the same boot, until Retire was told of its sequence. A torn
// entry is never returned. Sequences are the caller's: distinct, without gaps but for entries it gave up, starting above what Replay was told. A caller
// reserves room before its data write, takes its sequence after that, and appends; so a sequence always has a slot. Where there is no room it waits in
// Wait, holding nothing.
//
// # States
//
// Open tells apart, by error, why a ring cannot be used: ErrMissing, ErrVersion, ErrDamaged, ErrOtherPool, ErrOtherBoot, ErrStaleEpoch. After a reboot
// (ErrMissing, ErrOtherBoot) nothing is lost by a Create. In the same boot, after an unclean close, every one of them means acknowledged writes may be
// lost, and the decision is the operator's.
//
// # Epochs
//
// The order at open is: Open(epoch as the metadata has it), Replay, SetEpoch(epoch+1), commit epoch+1 in the metadata, commit the replayed entries,
// Retire. So the ring's epoch is the metadata's or one above it (a death between the two), and any other number means that this file missed an opening
// of the pool. Entries of earlier epochs count as long as their sequence is above what was committed: every opening commits all it finds before it
// serves, so there are none but those of the last epoch that served.
//
// # Bytes
//
// All numbers are little-endian; CRCs are CRC-32C. The file is a header page of 4096 bytes and then 2^k slots of 64 bytes. The header page holds two
// copies, at 0 and 2048; an update writes the older one, so a death in the middle leaves the other. The valid copy with the higher serial counts.
//
//	header copy (512 bytes)                     entry (64 bytes), in slot sequence mod 2^k
//	  0  8  magic "ROWANRNG"                      0  8  sequence
//	  8  4  version, 1                            8  8  generation
//	 12  4  k                                    16  8  block of the volume
//	 16 16  pool id                              24  8  place: block of the pool; all ones: zeroes
//	 32 16  boot id                              32  4  length in blocks
//	 48  8  open epoch                           36  4  low half of the open epoch
//	 56  8  serial                               40  2  kind (the engine's)
//	 64  2  1: the pool has failed               42 18  zero
//	 66  2  length of the reason                 60  4  CRC of bytes 0 to 59; 0: empty or being written
//	 68 256 reason, UTF-8
//	324 184 zero
//	508  4  CRC of bytes 0 to 507
//
// An append clears the CRC's word, writes the body, and writes the CRC's word last, as single stores in that order; a process that dies between two of
// them leaves a slot that counts as empty. (A CRC that happens to be 0 is written as 1.) So a slot whose CRC is neither 0 nor right was damaged by
// something else, and Replay says so.
package ring

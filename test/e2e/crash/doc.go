// Package crash is verified load: traffic on block devices of which every sector is known at every moment, and the test that kills the engine under it.
//
// A Load has workers, each with a range of sectors of its own, which do one request at a time: writes, discards, write-zeroes, flushes, and reads that
// compare. Ranges begin and end within blocks, so that neighbours share them. Every sector written is a Stamp: run, volume, sector, and a version that
// no other write has, repeated through the sector in a way that a torn, shifted or foreign one shows.
//
// A Cut records what workers do while a snapshot is taken. Its Check reads what the snapshot holds and says whether that is what a device can have been
// at one moment between the request and the answer: for each worker all requests up to one, of the next one any part, and nothing later; and the moments
// of all workers have one in common.
//
// Limits: a sector costs 8 bytes of memory, and 8 more for each cut being recorded. What a worker's request leaves when it fails is unknown, so a worker
// ends at its first failure.
package crash

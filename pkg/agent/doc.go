// Package agent carries out the custom resources of one node through that node's engine, and tells in their status what has become of them.
//
// Contract:
//   - It reads the objects whose spec.nodeName is its node and writes their /status, nothing else of them: never spec, finalizers or deletion.
//   - Blocks are freed only where spec.desiredState is Absent, and only of what the engine made for that very object (by its UID). A
//     deletionTimestamp frees nothing and is told as DeletionNotConfirmed.
//   - Nothing is made on the word of the cache: right before a volume, snapshot or pool is made, its object is read from the API server. What was
//     Created once is never made again: where the engine has it no more, it is Lost, until the engine has it again.
//   - A snapshot is cut before spec.notAfter or not at all.
//   - A volume is rolled back once for a token of spec.rollback, while it is held and not staged (see rollBack).
//   - Every step may be the last: whatever was done before a kill is found in the engine, and the object's status follows from what the engine has.
//     Status is written where it changes, in patches that fail when somebody else wrote meanwhile.
//   - While the engine does not answer, conditions stay as they are and the work is tried again.
//
// Limits: one agent a node. It puts no pool's metadata right, removes no members and deletes no orphans: those are rowanctl's and the plugin's.
package agent

// Command upstream runs Kubernetes' own storage tests (test/e2e/upstream) against a cluster that has Rowan, and says whether what the manifest
// declares holds: no spec failed, no spec was skipped for a reason that is not on the list (skips.txt), no fewer passed than before (passes.txt).
//
// Contract: an outcome is on disk when its spec has ended. A run that was interrupted goes on where it was; one that failed repeats what did
// not pass.  What passed only when it was repeated is named and counted, and fails the run like what never passed. Results of another build
// (-subject), binary or manifest are never mixed in: the run begins anew. With -shard several runs, at the same time on clusters of their
// own or one after the other, share the specs; the number of passes is judged where the results of all are together.
//
// The last lines are `name value (bar …)`; it exits with 1 when one of them is missed.
//
// Limits: images are loaded into clusters of hack/cluster only (-cluster); elsewhere they are pulled.
package main

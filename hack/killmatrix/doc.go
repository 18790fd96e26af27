// Command killmatrix runs every flow of test/e2e once for each of Rowan's processes, killed at a step of the flow, on a cluster that has Rowan.
//
// Contract: a cell of the matrix is done when its flow has passed and the process was killed in it. What is done is on disk when the flow has ended, so a
// run that was interrupted goes on where it was; one that failed repeats what did not pass. Results of another build (-subject) are not gone on with.
// A flow may have fewer steps than the kill was drawn from: it runs again, with the kill drawn from half as many, until the process was killed. Flows that
// draw no kill (they disturb nodes or measure) are not part of the matrix.
//
// The last lines are `name value (bar …)`; it exits with 1 when one of them is missed.
package main

// Package enginetest is the reference model of the engine, and random runs of all its operations against it.
//
// The model is a map of byte slices: of every volume, snapshot and open reader the blocks that are not zeroes, and nothing of how an engine might keep
// them. Run is a random sequence of all operations, one after the other, after each of which the engine must answer as the model does; RunConcurrent has
// several at work on each volume while another takes, reads and deletes snapshots. Both draw everything from pgregory.net/rapid, which makes a failing
// run short, and call Pool.Check after every operation that changes more than a volume's content.
//
// Limits: the order in which an engine's own goroutines run is not rapid's to draw. A failure that needs one may not come again, and rapid says so.
package enginetest

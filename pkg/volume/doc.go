// Package volume is the domain of Rowan's CSI driver: what a volume, a snapshot and a group of snapshots are to a container
// orchestrator, what can go wrong, and the services that the driver answers CSI calls with.
//
// Contract: Controller and Node are implemented by packages below this one: local (an engine on this node) and memory (nothing but RAM, for tests).
// All implementations pass volumetest. An implementation refuses what is taken or gone (ErrExists, ErrNotFound); Idempotent turns repeated calls into
// the answer of the first, and Serialized refuses a second operation on an object while one is under way. Open puts both on an implementation in the
// right order, and is what a process uses.
//
// Limits: sizes are int64 bytes, names at most MaxNameLen bytes. The rule for sizes is in size.go and the rule for admitting a volume in capacity.go,
// each once. The package imports the standard library alone and knows neither CSI nor the engine.
package volume

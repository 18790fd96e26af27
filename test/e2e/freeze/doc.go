// Package freeze tests snapshots of frozen file systems on real devices: how long writers wait, that they never wait for a driver that died, and what is in
// the snapshot. It has tests only; without root it skips.
package freeze

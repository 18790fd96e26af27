// Package driver is the CSI plugin (specification 1.13): its identity, controller, group controller and node services over the services of package volume, and
// the gRPC server that they are called through.
//
// Contract: every method is idempotent, validates its request before it does anything, and returns errors of the domain; errors.go has the one table
// that makes gRPC codes of them, applied by the server to every answer. Advertised capabilities are those that work. A file system is only ever made
// on a volume that never held anything (volume.Volume.MayFormat); what is found on the device alone does not decide. State is in the mount table and
// in the volume service: a restarted plugin goes on where the last one stopped.
//
// Limits: volumes live on one node, so the access modes are the single-node ones. Node calls for one volume exclude each other (ABORTED). The package
// never imports the engine.
package driver

// Package host keeps what one engine process serves: the open pools by name, and the volumes attached as devices.
//
// Contract:
//   - Every pool made or opened here is written to pools.json in the state folder and opened again at every start. A pool that does not open is
//     listed with State StateUnavailable and the reason; the others go on.
//   - Devices outlive the process. Start resumes every attachment the attacher still has, each as soon as its pool is open. Stop detaches nothing: it
//     lets requests under way be answered, leaves all others unanswered for the next engine, and closes volumes and pools.
//   - Operations on one volume are done one after the other, operations on different volumes side by side. All wait for their turn only as long as
//     their context lives, and then fail with engine.ErrBusy.
//   - Attach, Detach and OpenPool may be asked for again: they answer what is. The others tell the second caller engine.ErrExists or
//     engine.ErrNotFound.
//
// Limits: one host per state folder at a time (a lock file sees to it). It knows no gRPC, logs nothing (see engine.Observer), and reads no flags.
package host

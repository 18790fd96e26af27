// Package keeper is the process that outlives the engine: it holds, for each attachment, a record of opaque bytes and up to MaxFDs descriptors, and
// gives copies of them to whoever asks with the same user id. It reads nothing from the descriptors and knows nothing of what is in a record, so
// that it seldom needs a new version because the engine has one. And it makes the system calls that would have the engine wait for itself (package
// loopdev): a SIGKILL of the engine then leaves nothing that cannot end.
//
// It speaks over a SOCK_SEQPACKET unix socket, one request and its answers on each connection:
//
//	message   magic "RWKP", version u16, operation or answer u16, flags u32, id length u16, data length u16, id, data; little endian
//	Put       stores id, data and the message's descriptors; replaces what is there, unless FlagExclusive forbids it
//	Update    stores data and leaves the descriptors as they are
//	Get       answers the record with copies of its descriptors
//	List      answers every record without descriptors, then Done
//	Delete    forgets the record and closes its descriptors
//	Handover  gives the listening socket, the lock and all records to a successor, and ends this keeper once the successor has confirmed
//	Work      carries out a loopdev.Work (data, JSON) with the message's descriptor, after the id's earlier ones; answers its result when it is done
//	Watch     answers nothing until this keeper ends, which the client sees as the end of the connection
//
// A keeper that starts where one runs takes over from it (Serve). Connections that arrive meanwhile wait in the listening socket's queue, which moves
// with it. If the successor dies before it confirmed, the old keeper goes on. Works that are under way for over two seconds stay with the old
// keeper's process, which ends with the last of them.
//
// Limits: MaxRecords records; a message is at most MaxMessage bytes. Each exchange has a deadline, so that no peer can stop the keeper; works have
// none, each has a goroutine, and a thread while it waits in the kernel. Needs CAP_SYS_ADMIN and the loop devices' nodes. The process needs a
// descriptor limit of MaxRecords × MaxFDs and a few; its caller raises it.
package keeper

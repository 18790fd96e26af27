// Package rpc is the protocol of the engine's unix socket: the server that puts it on a host (package host), and the client that gives the
// engine's own Go types and errors back.
//
// Contract: for every exported sentinel error S of package engine, errors.Is(err, S) says the same at the client as at the server, and the text
// arrives whole. A call ends at its context's deadline; one that came without a deadline ends after DefaultTimeout (LongTimeout for making, opening
// and checking a pool, ScrubTimeout for scrubbing it). What a call that ended so was doing may still have happened: ask for the object.
//
// Limits: a message has at most MaxMessage bytes, names and labels the engine's limits. The socket's mode is 0600: whoever can open it can do
// everything.
package rpc

//go:generate sh -c "cd ../../.. && protoc --plugin=protoc-gen-go=${DOLLAR}(go tool -n protoc-gen-go) --plugin=protoc-gen-go-grpc=${DOLLAR}(go tool -n protoc-gen-go-grpc) --proto_path=pkg/engine/rpc --go_out=. --go_opt=module=github.com/rowan-csi/rowan --go-grpc_out=. --go-grpc_opt=module=github.com/rowan-csi/rowan engine.proto"

package sanity

import (
	"bytes"
	"fmt"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
)

// join serves the plugins of a controller and of a node as one: the suite asks one identity service for everything.
type join struct{ controller, node *grpc.ClientConn }

// serve answers on a socket until the test ends.
func (j join) serve(t *testing.T) (address string) {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "csi.sock")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer(grpc.ForceServerCodec(asIs{}), grpc.UnknownServiceHandler(j.handle))
	served := make(chan error, 1)
	go func() { served <- s.Serve(l) }()
	t.Cleanup(func() {
		s.Stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return "unix://" + socket
}

// handle hands a call on as it is: to the node what is of the node service, all else to the controller.
func (j join) handle(_ any, stream grpc.ServerStream) error {
	method, ok := grpc.MethodFromServerStream(stream)
	if !ok {
		return fmt.Errorf("a call without a method")
	}
	to := j.controller
	if strings.HasPrefix(method, "/csi.v1.Node/") {
		to = j.node
	}
	var request, answer message
	if err := stream.RecvMsg(&request); err != nil {
		return err
	}
	if err := to.Invoke(stream.Context(), method, &request, &answer, grpc.ForceCodec(asIs{})); err != nil {
		return err
	}
	return stream.SendMsg(&answer)
}

// message is a message's bytes.
type message struct{ bytes []byte }

// asIs is the codec that does not look into messages.
type asIs struct{}

// Marshal implements encoding.Codec.
func (asIs) Marshal(v any) ([]byte, error) { return v.(*message).bytes, nil }

// Unmarshal implements encoding.Codec.
func (asIs) Unmarshal(b []byte, v any) error {
	v.(*message).bytes = bytes.Clone(b)
	return nil
}

// Name implements encoding.Codec.
func (asIs) Name() string { return "proto" }

package driver

import (
	"context"
	"path"
	"strings"
	"sync/atomic"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"k8s.io/klog/v2"
)

// The verbosity from which on things are logged: calls that change something, requests and answers, and what is called all the time.
const (
	logCallsAt    = 2
	logContentAt  = 5
	logFrequentAt = 6
)

// logCalls logs every call with what it is about, and gives its context a logger that names the same.
func logCalls(logger klog.Logger) grpc.UnaryServerInterceptor {
	var calls atomic.Uint64
	return func(ctx context.Context, req any, info *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
		method := path.Base(info.FullMethod)
		log := logger.WithValues(append([]any{"method", method, "call", calls.Add(1)}, subject(req)...)...)
		level := logCallsAt
		if frequent(method) {
			level = logFrequentAt
		}
		log.V(max(level, logContentAt)).Info("Call", "request", stripped(req))
		start := time.Now()
		resp, err := handler(klog.NewContext(ctx, log), req)
		took := time.Since(start).Round(time.Microsecond).String()
		switch code := codeOf(err); code {
		case codes.OK:
			log.V(level).Info("Done", "took", took)
			log.V(max(level, logContentAt)).Info("Answer", "response", stripped(resp))
		case codes.Internal, codes.Unknown, codes.DataLoss:
			log.Error(err, "Failed", "code", code.String(), "took", took)
		default:
			log.Info("Refused", "code", code.String(), "reason", err.Error(), "took", took)
		}
		return resp, err
	}
}

func frequent(method string) bool {
	switch method {
	case "Probe", "GetPluginInfo", "NodeGetVolumeStats", "GetCapacity":
		return true
	}
	return strings.HasSuffix(method, "GetCapabilities") || method == "GetPluginCapabilities"
}

// subject is what a request is about, as keys and values.
func subject(req any) (kv []any) {
	add := func(key, value string) {
		if value != "" {
			kv = append(kv, key, value)
		}
	}
	if r, ok := req.(interface{ GetName() string }); ok {
		add("name", r.GetName())
	}
	if r, ok := req.(interface{ GetVolumeId() string }); ok {
		add("volume", r.GetVolumeId())
	}
	if r, ok := req.(interface{ GetSourceVolumeId() string }); ok {
		add("volume", r.GetSourceVolumeId())
	}
	if r, ok := req.(interface{ GetSnapshotId() string }); ok {
		add("snapshot", r.GetSnapshotId())
	}
	if r, ok := req.(interface{ GetGroupSnapshotId() string }); ok {
		add("group", r.GetGroupSnapshotId())
	}
	if r, ok := req.(interface{ GetTargetPath() string }); ok {
		add("target", r.GetTargetPath())
	}
	return kv
}

// stripped is a message as text without its secrets, made only when the text is asked for.
type strippedMessage struct{ m proto.Message }

func stripped(m any) any {
	if p, ok := m.(proto.Message); ok {
		return strippedMessage{p}
	}
	return nil
}

// String implements fmt.Stringer.
func (s strippedMessage) String() string {
	c := proto.Clone(s.m)
	strip(c.ProtoReflect())
	return protojson.MarshalOptions{}.Format(c)
}

// strip clears every field that the specification marks as secret, at any depth.
func strip(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch secret, _ := proto.GetExtension(f.Options(), csi.E_CsiSecret).(bool); {
		case secret:
			m.Clear(f)
		case f.IsMap():
			if f.MapValue().Message() != nil {
				v.Map().Range(func(_ protoreflect.MapKey, e protoreflect.Value) bool { strip(e.Message()); return true })
			}
		case f.Message() == nil:
		case f.IsList():
			for i := range v.List().Len() {
				strip(v.List().Get(i).Message())
			}
		default:
			strip(v.Message())
		}
		return true
	})
}

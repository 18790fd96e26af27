package rpc

import (
	"context"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/host"
)

// TestSentinelsCross sends every sentinel through a real socket.
func TestSentinelsCross(t *testing.T) {
	e := newEndpoint(t)
	e.pool(t)
	var fail error
	e.engine.Fail = func(op, _ string) error {
		if op == "CreateVolume" || op == "Volumes" {
			return fail
		}
		return nil
	}
	for _, s := range sentinels {
		if s.err == context.Canceled || s.err == context.DeadlineExceeded {
			continue // a call that ended so gets its own answer: TestDeadline
		}
		fail = fmt.Errorf("do something with volume \"v\": %w: give another — näme", s.err)
		_, err := e.client.CreateVolume(t.Context(), "p", engine.VolumeSpec{Name: "v", Size: 1 << 20})
		if err == nil || err.Error() != fail.Error() {
			t.Errorf("%s: text %q, want %q", s.reason, err, fail)
		}
		if status.Code(err) != s.code {
			t.Errorf("%s: code %s, want %s", s.reason, status.Code(err), s.code)
		}
		for _, other := range sentinels {
			if errors.Is(err, other.err) != (other.err == s.err) {
				t.Errorf("%s at the client: errors.Is(err, %s) = %v", s.reason, other.reason, !(other.err == s.err))
			}
		}
	}
	fail = fmt.Errorf("open: %w: %w", host.ErrNotOpen, fmt.Errorf("deeper: %w", engine.ErrLost))
	_, err := e.client.CreateVolume(t.Context(), "p", engine.VolumeSpec{Name: "v", Size: 1 << 20})
	if !errors.Is(err, host.ErrNotOpen) || !errors.Is(err, engine.ErrLost) || status.Code(err) != codes.DataLoss {
		t.Errorf("two at once: %v, code %s", err, status.Code(err))
	}
	fail = errors.New("of no kind")
	_, err = e.client.CreateVolume(t.Context(), "p", engine.VolumeSpec{Name: "v", Size: 1 << 20})
	if err == nil || err.Error() != "of no kind" || status.Code(err) != codes.Internal {
		t.Errorf("no sentinel: %v, code %s", err, status.Code(err))
	}
}

// TestTableIsComplete reads package engine's errors, so that a new one is not forgotten, and holds the table to one reason each.
func TestTableIsComplete(t *testing.T) {
	reasons := map[string]bool{}
	for _, s := range sentinels {
		if reasons[s.reason] || s.reason == "" || s.reason != strings.ToUpper(s.reason) {
			t.Errorf("reason %q is there twice, empty or not in capitals", s.reason)
		}
		reasons[s.reason] = true
	}
	f, err := parser.ParseFile(token.NewFileSet(), "../errors.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.VAR {
			continue
		}
		for _, spec := range g.Specs {
			for _, name := range spec.(*ast.ValueSpec).Names {
				want := constantCase(strings.TrimPrefix(name.Name, "Err"))
				if !reasons[want] {
					t.Errorf("engine.%s is not in the table (as %s)", name.Name, want)
				}
			}
		}
	}
}

// constantCase makes NOT_BLANK of NotBlank.
func constantCase(s string) string {
	var b strings.Builder
	for i, c := range s {
		if i > 0 && c >= 'A' && c <= 'Z' {
			b.WriteByte('_')
		}
		b.WriteRune(c)
	}
	return strings.ToUpper(b.String())
}

func TestFromStatusKeepsOthers(t *testing.T) {
	if err := fromStatus("/s", nil); err != nil {
		t.Error(err)
	}
	plain := errors.New("plain")
	if err := fromStatus("/s", plain); err != plain {
		t.Error(err)
	}
	for code, want := range map[codes.Code]error{
		codes.Unavailable: ErrUnreachable, codes.DeadlineExceeded: context.DeadlineExceeded, codes.Canceled: context.Canceled,
		codes.Unimplemented: errors.ErrUnsupported,
	} {
		err := fromStatus("/run/s", status.Error(code, "cause"))
		if !errors.Is(err, want) || status.Code(err) != code || !strings.Contains(err.Error(), "/run/s") || !strings.Contains(err.Error(), "cause") {
			t.Errorf("%s: %v", code, err)
		}
	}
}

package volume

import (
	"errors"
	"strings"
	"testing"
)

func TestCreateRequestCheck(t *testing.T) {
	for _, c := range []struct {
		name string
		r    CreateRequest
		ok   bool
	}{
		{"plain", CreateRequest{Name: "pvc-1", FSType: FSXFS}, true},
		{"spaces and tabs", CreateRequest{Name: "a\t b\n"}, true},
		{"128 bytes", CreateRequest{Name: strings.Repeat("A", 128)}, true},
		{"129 bytes", CreateRequest{Name: strings.Repeat("A", 129)}, false},
		{"no name", CreateRequest{}, false},
		{"control character", CreateRequest{Name: "a\x00"}, false},
		{"C1 control character", CreateRequest{Name: "a\u0085"}, false},
		{"not UTF-8", CreateRequest{Name: "a\xff"}, false},
		{"file system", CreateRequest{Name: "a", FSType: "btrfs"}, false},
		{"cow", CreateRequest{Name: "a", Parameters: Parameters{Mode: ModeCOW, Tidy: true}}, true},
		{"mode", CreateRequest{Name: "a", Parameters: Parameters{Mode: "fast"}}, false},
		{"two sources", CreateRequest{Name: "a", Source: Source{SnapshotIDOf("s"), VolumeIDOf("v")}}, false},
	} {
		if err := c.r.Check(); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

func TestSatisfies(t *testing.T) {
	base := CreateRequest{Name: "a", Capacity: Range{Required: gi}, FSType: FSExt4, Parameters: Parameters{Pool: "p"}}
	v := Volume{
		ID: base.ID(), Name: "a", Sizing: Sizing{gi, gi}, FSType: FSExt4, Parameters: base.Parameters.Normal(), Node: "n", Pool: "p",
	}
	for _, c := range []struct {
		name   string
		change func(*CreateRequest)
		ok     bool
	}{
		{"same", func(*CreateRequest) {}, true},
		{"another mode", func(r *CreateRequest) { r.Parameters.Mode = ModeCOW }, false},
		{"tidy", func(r *CreateRequest) { r.Parameters.Tidy = true }, false},
		{"mode spelled out", func(r *CreateRequest) { r.Parameters.Mode = ModeROW }, true},
		{"less", func(r *CreateRequest) { r.Capacity.Required = mi }, true},
		{"on its node", func(r *CreateRequest) { r.Placement = Placement{Constrained: true, Requisite: []NodeID{"m", "n"}} }, true},
		{"name", func(r *CreateRequest) { r.Name = "b" }, false},
		{"more", func(r *CreateRequest) { r.Capacity.Required = gi + 1 }, false},
		{"limit", func(r *CreateRequest) { r.Capacity = Range{Limit: gi - 1} }, false},
		{"file system", func(r *CreateRequest) { r.FSType = FSXFS }, false},
		{"raw block", func(r *CreateRequest) { r.FSType = "" }, false},
		{"pool", func(r *CreateRequest) { r.Parameters.Pool = "" }, false},
		{"source", func(r *CreateRequest) { r.Source.Volume = VolumeIDOf("x") }, false},
		{"other node", func(r *CreateRequest) { r.Placement = Placement{Constrained: true, Requisite: []NodeID{"m"}} }, false},
		{"no node", func(r *CreateRequest) { r.Placement = Placement{Constrained: true} }, false},
	} {
		r := base
		c.change(&r)
		if err := v.Satisfies(r); (err == nil) != c.ok || err != nil && !errors.Is(err, ErrExists) {
			t.Errorf("%s: %v", c.name, err)
		}
	}
}

// TestMayFormat is the promise that making a file system never destroys anything.
func TestMayFormat(t *testing.T) {
	for _, c := range []struct {
		written, parent bool
		format          FormatState
		want            bool
	}{
		{false, false, FormatNone, true},
		{false, false, FormatStarted, true},
		{true, false, FormatStarted, true}, // what is left of a maker that died
		{true, false, FormatNone, false},
		{true, false, FormatDone, false},
		{false, true, FormatNone, false},
		{true, true, FormatNone, false},
		{true, true, FormatStarted, false}, // put back to a snapshot meanwhile
		{true, true, FormatDone, false},
	} {
		v := Volume{Written: c.written, HasParent: c.parent, Format: c.format}
		if got := v.MayFormat(); got != c.want {
			t.Errorf("written %t, parent %t, format %q: %t", c.written, c.parent, c.format, got)
		}
	}
}

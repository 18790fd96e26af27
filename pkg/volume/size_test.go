package volume

import (
	"errors"
	"testing"

	"pgregory.net/rapid"
)

const mi, gi = int64(1) << 20, int64(1) << 30

func TestFit(t *testing.T) {
	for _, c := range []struct {
		name   string
		r      Range
		fs     string
		source Sizing
		want   Sizing
		err    error
	}{
		{name: "nothing asked", want: Sizing{gi, gi}},
		{name: "1 byte", r: Range{Required: 1}, want: Sizing{mi, 1}},
		{name: "1G", r: Range{Required: 1_000_000_000}, want: Sizing{954 * mi, 1_000_000_000}},
		{name: "1.5G", r: Range{Required: 1_500_000_000}, fs: FSXFS, want: Sizing{1431 * mi, 1_500_000_000}},
		{name: "10Mi on XFS", r: Range{Required: 10 * mi}, fs: FSXFS, want: Sizing{300 * mi, 10 * mi}},
		{name: "exact limit", r: Range{Required: gi, Limit: gi}, want: Sizing{gi, gi}},
		{name: "limit below rounding", r: Range{Required: gi + 1, Limit: gi + 2}, err: ErrOutOfRange},
		{name: "limit below XFS", r: Range{Limit: 299 * mi}, fs: FSXFS, err: ErrOutOfRange},
		{name: "only a limit", r: Range{Limit: 5*mi + 1}, want: Sizing{5 * mi, 5 * mi}},
		{name: "a large limit", r: Range{Limit: 5 * gi}, want: Sizing{gi, gi}},
		{name: "a tiny limit", r: Range{Limit: 5}, err: ErrOutOfRange},
		{name: "limit below required", r: Range{Required: 2 * gi, Limit: gi}, err: ErrOutOfRange},
		{name: "negative", r: Range{Required: -1}, err: ErrOutOfRange},
		{name: "negative limit", r: Range{Limit: -1}, err: ErrOutOfRange},
		{name: "largest", r: Range{Required: MaxSize}, want: Sizing{MaxSize, MaxSize}},
		{name: "over the largest", r: Range{Required: MaxSize + 1}, err: ErrOutOfRange},
		{name: "overflow", r: Range{Required: 1<<63 - 1}, err: ErrOutOfRange},
		{name: "copy, nothing asked", source: Sizing{954 * mi, 1_000_000_000}, want: Sizing{954 * mi, 1_000_000_000}},
		{name: "copy, same asked", r: Range{Required: 1_000_000_000}, source: Sizing{954 * mi, 1_000_000_000}, want: Sizing{954 * mi, 1_000_000_000}},
		{name: "copy, less asked", r: Range{Required: mi}, source: Sizing{954 * mi, 1_000_000_000}, want: Sizing{954 * mi, 1_000_000_000}},
		{name: "copy, more asked", r: Range{Required: gi}, source: Sizing{954 * mi, 1_000_000_000}, want: Sizing{gi, gi}},
		{name: "block copy of a small XFS", r: Range{Required: 10 * mi}, source: Sizing{300 * mi, 10 * mi}, want: Sizing{300 * mi, 10 * mi}},
		{name: "copy over the limit", r: Range{Limit: 900 * mi}, source: Sizing{954 * mi, 1_000_000_000}, err: ErrOutOfRange},
	} {
		got, err := Fit(c.r, c.fs, c.source)
		if !errors.Is(err, c.err) || err == nil && got != c.want {
			t.Errorf("%s: %+v, %v, want %+v, %v", c.name, got, err, c.want, c.err)
		}
	}
}

// TestSourcesOwnRequestRestores is the rule that a snapshot's reported size is never more than what its source was asked for.
func TestSourcesOwnRequestRestores(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.OneOf(rapid.Int64Range(1, MaxSize), rapid.Int64Range(1, 400*mi), rapid.SampledFrom([]int64{1e9, 1.5e9, 10 * mi}))
		fs := rapid.SampledFrom([]string{"", FSExt4, FSXFS}).Draw(t, "fs")
		asked := size.Draw(t, "asked")
		s, err := Fit(Range{Required: asked}, fs, Sizing{})
		if err != nil || s.Requested != asked || s.Size < asked || s.Size%SizeUnit != 0 || s.Size-asked >= SizeUnit && s.Size != MinSize(fs) {
			t.Fatalf("%d: %+v, %v", asked, s, err)
		}
		restored, err := Fit(Range{Required: s.Requested}, fs, s)
		if err != nil || restored != s {
			t.Fatalf("restore %+v: %+v, %v", s, restored, err)
		}
		grown, err := FitGrowth(Range{Required: size.Draw(t, "grown")}, fs, s)
		if err != nil || grown.Size < s.Size || Round(grown.Requested, fs) != grown.Size {
			t.Fatalf("grow %+v: %+v, %v", s, grown, err)
		}
	})
}

func TestAdmission(t *testing.T) {
	a := Admission{Overcommit: 2}
	for _, c := range []struct {
		name  string
		space Space
		want  Capacity
		admit int64 // admitted; one byte more is not
		full  bool
		kind  Provisioning
	}{
		{name: "empty", space: Space{Size: 10 * gi}, want: Capacity{Available: 20 * gi, MinVolume: mi, MaxVolume: 20 * gi}, admit: 20 * gi},
		{name: "some", space: Space{Size: 10 * gi, Provisioned: gi + 1}, want: Capacity{18 * gi, mi, 19*gi - mi}, admit: 19*gi - 1},
		{name: "over", space: Space{Size: 10 * gi, Provisioned: 30 * gi}, want: Capacity{MinVolume: mi}},
		{name: "full", space: Space{Size: 100 * gi, Used: 95 * gi, Scarce: true}, want: Capacity{MinVolume: mi}, full: true},
		{name: "nearly full", space: Space{Size: 100 * gi, Used: 95*gi - 1}, want: Capacity{200 * gi, mi, 200 * gi}, admit: 200 * gi},
		{name: "beside thick ones", space: Space{Size: 10 * gi, Provisioned: 7 * gi, Thick: 6 * gi}, want: Capacity{7 * gi, mi, 7 * gi}, admit: 7 * gi},
		{
			name: "thick", space: Space{Size: 10 * gi, Provisioned: 3 * gi, Thick: gi, Available: 5*gi + 1}, want: Capacity{5 * gi, mi, 5 * gi},
			admit: 5*gi + 1, kind: ProvisionThick,
		},
		{name: "largest", space: Space{Size: 100 << 40}, want: Capacity{200 << 40, mi, MaxSize}, admit: 200 << 40},
	} {
		if got := a.Capacity(c.space, "", c.kind); got != c.want {
			t.Errorf("%s: %+v, want %+v", c.name, got, c.want)
		}
		if err := a.Admit(c.space, c.admit, c.kind); c.admit > 0 && err != nil {
			t.Errorf("%s: %v", c.name, err)
		}
		if err := a.Admit(c.space, c.admit+1, c.kind); !errors.Is(err, ErrNoSpace) {
			t.Errorf("%s, one byte more: %v", c.name, err)
		}
		if err := a.AdmitSnapshot(c.space); errors.Is(err, ErrNoSpace) != c.full {
			t.Errorf("%s, snapshot: %v", c.name, err)
		}
	}
}

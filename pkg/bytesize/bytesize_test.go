package bytesize

import (
	"errors"
	"math"
	"strings"
	"testing"
)

func TestParse(t *testing.T) {
	for s, want := range map[string]int64{
		"1": 1, "4096": 4096, "10Gi": 10 << 30, "1.5G": 1_500_000_000, "1.5Gi": 3 << 29, "64Ti": Max, "1k": 1000, "1Ki": 1024, "2M": 2e6, "3T": 3e12,
		"0.1": 1, ".5Ki": 512, "1.": 1, "0.0000000000000000001Ti": 1, "007Mi": 7 << 20,
	} {
		if got, err := Parse(s); err != nil || got != want {
			t.Errorf("Parse(%q) = %d, %v; want %d", s, got, err, want)
		}
	}
}

func TestParseRefuses(t *testing.T) {
	for s, want := range map[string]error{
		"": ErrSyntax, "Gi": ErrSyntax, ".": ErrSyntax, "ten": ErrSyntax, "-1Gi": ErrSyntax, "+1": ErrSyntax, "1 Gi": ErrSyntax, "1e3": ErrSyntax,
		"0x10": ErrSyntax, "1K": ErrSyntax, "1m": ErrSyntax, "1GiB": ErrSyntax, "1GB": ErrSyntax, "1.2.3": ErrSyntax, "1/2": ErrSyntax,
		"1_000": ErrSyntax, "NaN": ErrSyntax, "Inf": ErrSyntax, strings.Repeat("9", 100): ErrSyntax, "1Pi": ErrSyntax,
		"0": ErrRange, "0Gi": ErrRange, "0.0": ErrRange, "64.0000000001Ti": ErrRange, "65Ti": ErrRange, "99999999999999999999": ErrRange,
	} {
		_, err := Parse(s)
		if !errors.Is(err, want) {
			t.Errorf("Parse(%q): %v; want %v", s, err, want)
			continue
		}
		if names := []string{"Ki Mi Gi Ti", "64Ti"}; !strings.Contains(err.Error(), names[0]) && !strings.Contains(err.Error(), names[1]) {
			t.Errorf("Parse(%q): %q does not name what is allowed", s, err)
		}
	}
}

func TestFormat(t *testing.T) {
	for n, want := range map[int64]string{
		0: "0", 512: "512", 1023: "1023", 1024: "1Ki", 1536: "1.5Ki", 10 << 30: "10Gi", 1<<20 - 1: "1Mi", Max: "64Ti", -2048: "-2Ki",
		math.MaxInt64: "8388608Ti", 1_500_000_000: "1.4Gi",
	} {
		if got := Format(n); got != want {
			t.Errorf("Format(%d) = %q, want %q", n, got, want)
		}
	}
}

func TestRoundUp(t *testing.T) {
	for _, c := range [][3]int64{{1, 4, 4}, {4, 4, 4}, {5, 4, 8}, {0, 4, 0}} {
		if got := RoundUp(c[0], c[1]); got != c[2] {
			t.Errorf("RoundUp(%d, %d) = %d, want %d", c[0], c[1], got, c[2])
		}
	}
}

func FuzzParse(f *testing.F) {
	for _, s := range []string{"10Gi", "1.5G", "0", "-1", "64Ti", "9e9", ".", "1.0000000000000000000001Ti"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		n, err := Parse(s)
		if err != nil {
			if n != 0 || (!errors.Is(err, ErrSyntax) && !errors.Is(err, ErrRange)) {
				t.Fatalf("Parse(%q) = %d, %v", s, n, err)
			}
			return
		}
		if n < 1 || n > Max {
			t.Fatalf("Parse(%q) = %d, out of its bounds", s, n)
		}
		back, err := Parse(Format(n))
		if err != nil {
			t.Fatalf("Format(%d) = %q does not parse: %v", n, Format(n), err)
		}
		if diff := math.Abs(float64(back-n)) / float64(n); diff > 0.06 {
			t.Fatalf("Format(%d) = %q, off by %.1f %%", n, Format(n), 100*diff)
		}
	})
}

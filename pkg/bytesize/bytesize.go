// Package bytesize reads and prints sizes in bytes as Kubernetes writes them: 512Mi, 10Gi, 1.5G, 4096.
//
// Contract: Parse takes a positive decimal number with at most one of the suffixes k M G T (powers of 1000) and Ki Mi Gi Ti (powers of 1024), and
// rounds a fraction of a byte up, as resource.Quantity does. It refuses what the engine never needs: signs, exponents, milli-units, and sizes
// above Max.
package bytesize

import (
	"errors"
	"fmt"
	"math/big"
	"strconv"
	"strings"
)

// Max is the largest size Parse takes: 64 TiB, the engine's largest volume.
const Max = 64 << 40

// ErrSyntax: the text is no size. The error's text says what is allowed.
var ErrSyntax = errors.New("not a size")

// ErrRange: the size is zero or above Max.
var ErrRange = errors.New("size out of range")

const allowed = "give a number of bytes, with a suffix of Ki Mi Gi Ti (1024) or k M G T (1000) if you like, such as 10Gi or 1.5G"

// maxDigits bounds the text, so that its value can be worked out exactly and cheaply.
const maxDigits = 40

var units = []struct {
	suffix string
	factor int64
}{
	// The two-letter ones first: "Ki" must not be read as a number ending in "K".
	{"Ki", 1 << 10}, {"Mi", 1 << 20}, {"Gi", 1 << 30}, {"Ti", 1 << 40},
	{"k", 1e3}, {"M", 1e6}, {"G", 1e9}, {"T", 1e12},
}

// Parse reads a size in bytes, 1 to Max.
func Parse(s string) (int64, error) {
	number, factor := s, int64(1)
	for _, u := range units {
		if rest, ok := strings.CutSuffix(s, u.suffix); ok {
			number, factor = rest, u.factor
			break
		}
	}
	if !isDecimal(number) {
		return 0, fmt.Errorf("%q: %w: %s", clip(s), ErrSyntax, allowed)
	}
	r, ok := new(big.Rat).SetString(number)
	if !ok {
		return 0, fmt.Errorf("%q: %w: %s", clip(s), ErrSyntax, allowed)
	}
	r.Mul(r, new(big.Rat).SetInt64(factor))
	if r.Sign() == 0 {
		return 0, fmt.Errorf("%q: %w: it must be more than 0 and at most 64Ti", s, ErrRange)
	}
	if r.Cmp(new(big.Rat).SetInt64(Max)) > 0 {
		return 0, fmt.Errorf("%q: %w: at most 64Ti is allowed", s, ErrRange)
	}
	n := new(big.Int).Add(r.Num(), new(big.Int).Sub(r.Denom(), big.NewInt(1)))
	return n.Div(n, r.Denom()).Int64(), nil
}

// isDecimal: digits with at most one point, and a digit on one side of it at least.
func isDecimal(s string) bool {
	if len(s) == 0 || len(s) > maxDigits {
		return false
	}
	digits, points := 0, 0
	for _, c := range []byte(s) {
		switch {
		case c >= '0' && c <= '9':
			digits++
		case c == '.':
			points++
		default:
			return false
		}
	}
	return digits > 0 && points <= 1
}

func clip(s string) string {
	if len(s) > maxDigits {
		return s[:maxDigits] + "…"
	}
	return s
}

// Format prints n exactly where a binary unit can with at most one decimal, and rounded to one decimal where none can: 10Gi, 1.5Gi, 512.
func Format(n int64) string {
	if n < 0 {
		return "-" + Format(-n)
	}
	for i := 3; i >= 0; i-- {
		u := units[i]
		if n < u.factor {
			continue
		}
		tenths := (n/u.factor)*10 + (n%u.factor*10+u.factor/2)/u.factor
		if tenths >= 10240 && i < 3 { // rounding reached the next unit
			return "1" + units[i+1].suffix
		}
		whole := strconv.FormatInt(tenths/10, 10)
		if d := tenths % 10; d != 0 {
			return whole + "." + strconv.FormatInt(d, 10) + u.suffix
		}
		return whole + u.suffix
	}
	return strconv.FormatInt(n, 10)
}

// RoundUp is the smallest multiple of unit that is not below n.
func RoundUp(n, unit int64) int64 {
	return (n + unit - 1) / unit * unit
}

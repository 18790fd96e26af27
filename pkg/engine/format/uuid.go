package format

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
)

// UUID identifies a pool or a member, in every machine for ever. It is a random (version 4) UUID of RFC 9562; the zero UUID is none.
type UUID [16]byte

// NewUUID makes one from the system's random source.
func NewUUID() UUID {
	var u UUID
	_, _ = rand.Read(u[:]) // never fails: it ends the program where the system has no randomness
	u[6] = u[6]&0x0f | 0x40
	u[8] = u[8]&0x3f | 0x80
	return u
}

// String is the form of RFC 9562: 8-4-4-4-12 lower-case hexadecimal digits.
func (u UUID) String() string {
	h := hex.EncodeToString(u[:])
	return h[:8] + "-" + h[8:12] + "-" + h[12:16] + "-" + h[16:20] + "-" + h[20:]
}

// ParseUUID reads what String wrote, and nothing else.
func ParseUUID(s string) (UUID, error) {
	var u UUID
	if len(s) == 36 && s[8] == '-' && s[13] == '-' && s[18] == '-' && s[23] == '-' {
		if _, err := hex.Decode(u[:], []byte(s[:8]+s[9:13]+s[14:18]+s[19:23]+s[24:])); err == nil && u.String() == s {
			return u, nil
		}
	}
	return UUID{}, fmt.Errorf("%w: %q is no UUID", ErrCorrupt, s)
}

// IsZero tells whether u is none.
func (u UUID) IsZero() bool { return u == UUID{} }

package format

import "fmt"

// MemberState says what a member is to the pool.
type MemberState byte

const (
	// MemberInUse: blocks are handed out there.
	MemberInUse MemberState = 1
	// MemberDraining: what is there is being moved elsewhere, and nothing is handed out.
	MemberDraining MemberState = 2
	// MemberRemoved: it is the pool's no more. Kept so that its folder, should it turn up, is known for what it is.
	MemberRemoved MemberState = 3
)

// Member is a member's record. Its superblock says the same of ID and Size where the two can be compared; who is in the pool is said here.
type Member struct {
	ID    UUID
	State MemberState
	Size  uint64 // bytes of data it may hold
	Path  string // of the folder, or of the device it was made on, when it was last seen
}

func (r Member) Encode() []byte {
	e := encoder{b: []byte{recordVersion, byte(r.State)}}
	e.b = append(e.b, r.ID[:]...)
	e.uvarint(r.Size)
	e.string(r.Path)
	return e.b
}

func ParseMember(b []byte) (r Member, err error) {
	d := newDecoder(b)
	state, id := d.bytes(1), d.bytes(16)
	r.Size, r.Path = d.uvarint(), d.string()
	if d.err == nil {
		r.State, r.ID = MemberState(state[0]), UUID(id)
		switch {
		case r.State < MemberInUse || r.State > MemberRemoved:
			d.err = fmt.Errorf("%w: member state %d", ErrCorrupt, r.State)
		case r.ID.IsZero():
			d.err = fmt.Errorf("%w: no member id", ErrCorrupt)
		}
	}
	return r, d.wrap("member record")
}

package format

import (
	"encoding/binary"
	"fmt"
	"sort"
)

// Run is a run's value: its length in blocks and its place, a pool block, unless Zero.
type Run struct {
	Len   int
	Zero  bool
	Place uint64
}

// AppendRun appends uvarint(length << 1 | zero), then uvarint(place) unless zero.
func AppendRun(b []byte, r Run) []byte {
	if r.Zero {
		return binary.AppendUvarint(b, uint64(r.Len)<<1|1)
	}
	return binary.AppendUvarint(binary.AppendUvarint(b, uint64(r.Len)<<1), r.Place)
}

// ParseRun decodes the value of a run that begins at block.
func ParseRun(b []byte, block int) (Run, error) {
	d := decoder{b: b}
	head := d.uvarint()
	r := Run{Len: int(head >> 1), Zero: head&1 != 0}
	if !r.Zero {
		r.Place = d.uvarint()
	}
	if err := d.end(); err != nil {
		return Run{}, fmt.Errorf("run value: %w", err)
	}
	if head>>1 == 0 || head>>1 > uint64(pageBlocks-block) || r.Place >= 1<<40-1 {
		return Run{}, fmt.Errorf("%w: run at block %d, length %d, place %d", ErrCorrupt, block, head>>1, r.Place)
	}
	return r, nil
}

// Pool is the pool's own record.
type Pool struct {
	NextID     uint64 // of layers, volumes, snapshots, jobs: never reused
	NextGen    uint64
	NextFamily uint32
	OpenEpoch  uint64
	BootID     [16]byte // of the machine's boot in which the pool was last opened
	Clean      bool     // closed in order since
	RingSeq    uint64   // ring entries up to this one are applied
	Filled     bool     // members are filled one after the other; false: volumes are striped over them
}

// Layer is a set of generations, with a parent. Head is the volume whose head it is, Name the snapshot that names it; at most one is set.
type Layer struct {
	Family uint32
	Parent uint64
	Head   uint64
	Name   uint64
	Gens   []uint64 // ascending
}

// LayerUse is what changes with a layer's runs.
type LayerUse struct {
	Owned uint64 // blocks
	Pages uint64 // (generation, page) pairs
}

// Volume is a volume's record. Times are nanoseconds since 1970.
type Volume struct {
	Name         string
	Size         uint64
	Layer        uint64
	Created      int64
	HasParent    bool
	FromSnapshot string
	FromVolume   string
	Mode         byte   // 0: ROW, 1: COW
	FirstGen     uint64 // of its first head; older generations in its ancestry are what it inherited
	Tidy         bool   // its blocks are moved back into sequence in the background
	Labels       map[string]string
	Thick        bool // what it may yet need is reserved
}

// VolumeUse is what changes with a volume's writes.
type VolumeUse struct {
	Mapped  uint64 // blocks
	Written bool
}

// Snapshot is a name on a frozen layer.
type Snapshot struct {
	Name       string
	Layer      uint64
	VolumeID   uint64
	VolumeName string
	Group      string // of one cut with others; empty: taken by itself
	Size       uint64
	Mapped     uint64
	Created    int64
	Labels     map[string]string
	Thick      bool // its volume was
}

// JobKind says what a job does.
type JobKind byte

const (
	// JobFree removes the layer's runs, then the layer.
	JobFree JobKind = 1
	// JobJoin removes, in the pages that Gens touched, the runs of the layer that a newer run of it hides.
	JobJoin JobKind = 2
)

// Job is work that a deletion left behind.
type Job struct {
	Kind  JobKind
	Layer uint64
	Gens  []uint64
}

const recordVersion = 1

func (r Pool) Encode() []byte {
	e := encoder{b: []byte{recordVersion}}
	e.uvarint(r.NextID, r.NextGen, uint64(r.NextFamily), r.OpenEpoch, r.RingSeq)
	e.bool(r.Clean)
	e.bool(r.Filled)
	e.b = append(e.b, r.BootID[:]...)
	return e.b
}

func ParsePool(b []byte) (r Pool, err error) {
	d := newDecoder(b)
	r.NextID, r.NextGen, r.NextFamily, r.OpenEpoch, r.RingSeq = d.uvarint(), d.uvarint(), d.uint32(), d.uvarint(), d.uvarint()
	r.Clean, r.Filled = d.bool(), d.bool()
	copy(r.BootID[:], d.bytes(16))
	return r, d.wrap("pool record")
}

func (r Layer) Encode() []byte {
	e := encoder{b: []byte{recordVersion}}
	e.uvarint(uint64(r.Family), r.Parent, r.Head, r.Name)
	e.gens(r.Gens)
	return e.b
}

func ParseLayer(b []byte) (r Layer, err error) {
	d := newDecoder(b)
	r.Family, r.Parent, r.Head, r.Name = d.uint32(), d.uvarint(), d.uvarint(), d.uvarint()
	r.Gens = d.gens()
	return r, d.wrap("layer record")
}

func (r LayerUse) Encode() []byte {
	e := encoder{}
	e.uvarint(r.Owned, r.Pages)
	return e.b
}

func ParseLayerUse(b []byte) (r LayerUse, err error) {
	d := decoder{b: b}
	r.Owned, r.Pages = d.uvarint(), d.uvarint()
	return r, d.wrap("layer use record")
}

func (r Volume) Encode() []byte {
	e := encoder{b: []byte{recordVersion}}
	e.string(r.Name)
	e.uvarint(r.Size, r.Layer, uint64(r.Created))
	e.bool(r.HasParent)
	e.string(r.FromSnapshot)
	e.string(r.FromVolume)
	e.uvarint(uint64(r.Mode), r.FirstGen)
	e.bool(r.Tidy)
	e.labels(r.Labels)
	e.bool(r.Thick)
	return e.b
}

func ParseVolume(b []byte) (r Volume, err error) {
	d := newDecoder(b)
	r.Name = d.string()
	r.Size, r.Layer, r.Created = d.uvarint(), d.uvarint(), int64(d.uvarint())
	r.HasParent = d.bool()
	r.FromSnapshot, r.FromVolume = d.string(), d.string()
	r.Mode, r.FirstGen, r.Tidy = d.mode(), d.uvarint(), d.bool()
	r.Labels = d.labels()
	r.Thick = d.bool()
	return r, d.wrap("volume record")
}

func (r VolumeUse) Encode() []byte {
	e := encoder{}
	e.uvarint(r.Mapped)
	e.bool(r.Written)
	return e.b
}

func ParseVolumeUse(b []byte) (r VolumeUse, err error) {
	d := decoder{b: b}
	r.Mapped, r.Written = d.uvarint(), d.bool()
	return r, d.wrap("volume use record")
}

func (r Snapshot) Encode() []byte {
	e := encoder{b: []byte{recordVersion}}
	e.string(r.Name)
	e.uvarint(r.Layer, r.VolumeID)
	e.string(r.VolumeName)
	e.string(r.Group)
	e.uvarint(r.Size, r.Mapped, uint64(r.Created))
	e.labels(r.Labels)
	e.bool(r.Thick)
	return e.b
}

func ParseSnapshot(b []byte) (r Snapshot, err error) {
	d := newDecoder(b)
	r.Name = d.string()
	r.Layer, r.VolumeID = d.uvarint(), d.uvarint()
	r.VolumeName, r.Group = d.string(), d.string()
	r.Size, r.Mapped, r.Created = d.uvarint(), d.uvarint(), int64(d.uvarint())
	r.Labels = d.labels()
	r.Thick = d.bool()
	return r, d.wrap("snapshot record")
}

func (r Job) Encode() []byte {
	e := encoder{b: []byte{recordVersion, byte(r.Kind)}}
	e.uvarint(r.Layer)
	e.gens(r.Gens)
	return e.b
}

func ParseJob(b []byte) (r Job, err error) {
	d := newDecoder(b)
	kind := d.bytes(1)
	r.Layer, r.Gens = d.uvarint(), d.gens()
	if d.err == nil {
		r.Kind = JobKind(kind[0])
		if r.Kind != JobFree && r.Kind != JobJoin {
			d.err = fmt.Errorf("%w: job kind %d", ErrCorrupt, r.Kind)
		}
	}
	return r, d.wrap("job record")
}

// encoder appends fields; decoder reads them in the same order and keeps the first error.
type encoder struct{ b []byte }

func (e *encoder) uvarint(values ...uint64) {
	for _, v := range values {
		e.b = binary.AppendUvarint(e.b, v)
	}
}

func (e *encoder) bool(v bool) {
	if v {
		e.b = append(e.b, 1)
	} else {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) string(s string) {
	e.uvarint(uint64(len(s)))
	e.b = append(e.b, s...)
}

func (e *encoder) labels(m map[string]string) {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	e.uvarint(uint64(len(keys)))
	for _, k := range keys {
		e.string(k)
		e.string(m[k])
	}
}

// gens writes an ascending list as differences: old layers gather many generations, close to one another.
func (e *encoder) gens(gens []uint64) {
	e.uvarint(uint64(len(gens)))
	last := uint64(0)
	for _, g := range gens {
		e.uvarint(g - last)
		last = g
	}
}

type decoder struct {
	b   []byte
	err error
}

func newDecoder(b []byte) *decoder {
	d := &decoder{b: b}
	if v := d.bytes(1); d.err == nil && v[0] != recordVersion {
		d.err = fmt.Errorf("%w: record version %d, this program knows %d", ErrCorrupt, v[0], recordVersion)
	}
	return d
}

func (d *decoder) uvarint() uint64 {
	if d.err != nil {
		return 0
	}
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.err = fmt.Errorf("%w: number cut off or too large", ErrCorrupt)
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) uint32() uint32 {
	v := d.uvarint()
	if v > 1<<32-1 {
		d.err = fmt.Errorf("%w: number %d beyond 32 bits", ErrCorrupt, v)
	}
	return uint32(v)
}

func (d *decoder) bytes(n uint64) []byte {
	if d.err == nil && n > uint64(len(d.b)) {
		d.err = fmt.Errorf("%w: %d bytes wanted, %d there", ErrCorrupt, n, len(d.b))
	}
	if d.err != nil {
		return nil
	}
	v := d.b[:n]
	d.b = d.b[n:]
	return v
}

func (d *decoder) bool() bool {
	v := d.bytes(1)
	if d.err == nil && v[0] > 1 {
		d.err = fmt.Errorf("%w: flag is %d", ErrCorrupt, v[0])
	}
	return d.err == nil && v[0] == 1
}

func (d *decoder) mode() byte {
	v := d.uvarint()
	if d.err == nil && v > 1 {
		d.err = fmt.Errorf("%w: mode %d", ErrCorrupt, v)
	}
	return byte(v)
}

func (d *decoder) string() string { return string(d.bytes(d.uvarint())) }

func (d *decoder) labels() map[string]string {
	n := d.uvarint()
	if n == 0 || d.err != nil {
		return nil
	}
	if n > uint64(len(d.b)) {
		d.err = fmt.Errorf("%w: %d labels", ErrCorrupt, n)
		return nil
	}
	m := make(map[string]string, n)
	for range n {
		k := d.string()
		m[k] = d.string()
	}
	return m
}

func (d *decoder) gens() []uint64 {
	n := d.uvarint()
	if d.err == nil && n > uint64(len(d.b)) {
		d.err = fmt.Errorf("%w: %d generations", ErrCorrupt, n)
	}
	if d.err != nil || n == 0 {
		return nil
	}
	gens := make([]uint64, n)
	last := uint64(0)
	for i := range gens {
		step := d.uvarint()
		if d.err == nil && (step == 0 || step > maxGen-last) {
			d.err = fmt.Errorf("%w: generations not ascending", ErrCorrupt)
		}
		last += step
		gens[i] = last
	}
	return gens
}

func (d *decoder) end() error {
	if d.err == nil && len(d.b) != 0 {
		d.err = fmt.Errorf("%w: %d bytes too many", ErrCorrupt, len(d.b))
	}
	return d.err
}

func (d *decoder) wrap(what string) error {
	if err := d.end(); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

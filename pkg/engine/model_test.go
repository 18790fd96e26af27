package engine

import (
	"bytes"
	"encoding/binary"
	"flag"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"
)

var (
	modelSeeds = flag.Int("model.seeds", 6, "how many random histories the model test runs")
	modelSeed  = flag.Uint64("model.seed", 0, "run this one history only")
	modelSteps = flag.Int("model.steps", 250, "operations in a history")
)

const sectorsPerBlock = BlockSize / sectorSize

// image is what a volume should hold: a stamp for each sector, 0 for zeroes.
type image []uint64

func (m image) bytes(off, n int64) []byte {
	b := make([]byte, n)
	for i := int64(0); i < n; i += sectorSize {
		if stamp := m[(off+i)/sectorSize]; stamp != 0 {
			fillSector(b[i:i+sectorSize], stamp)
		}
	}
	return b
}

func fillSector(b []byte, stamp uint64) {
	for j := 0; j < sectorSize; j += 8 {
		binary.LittleEndian.PutUint64(b[j:], stamp*0x9e3779b97f4a7c15+uint64(j))
	}
}

// history is one random run of all operations against the model.
type history struct {
	*testPool
	r         *rand.Rand
	volumes   map[string]*modelVolume
	snapshots map[string]modelSnapshot
	stamp     uint64
	names     int
	events    int
}

type modelVolume struct {
	name string
	dev  *Volume
	img  image
	log  []modelEvent
}

type modelSnapshot struct {
	volume string
	img    image
	log    []modelEvent
}

// modelEvent is a change of some bytes. What two logs have in common at their beginning is what happened before they parted.
type modelEvent struct {
	id     int
	off, n int64
}

func (h *history) changed(v *modelVolume, off, n int64) {
	h.events++
	v.log = append(v.log, modelEvent{h.events, off, n})
}

func TestModel(t *testing.T) {
	seeds := *modelSeeds
	first := uint64(1)
	if *modelSeed != 0 {
		seeds, first = 1, *modelSeed
	}
	for i := range seeds {
		seed := first + uint64(i)
		t.Run(fmt.Sprintf("seed=%d", seed), func(t *testing.T) {
			h := &history{
				testPool: newPool(t, testOptions(t), MinPoolSize), r: rand.New(rand.NewPCG(seed, 7)),
				volumes: map[string]*modelVolume{}, snapshots: map[string]modelSnapshot{},
			}
			for step := range *modelSteps {
				h.step()
				if step%25 == 24 {
					h.verify()
				}
			}
			h.verify()
			h.deleteAll()
		})
	}
}

func (h *history) name(prefix string) string {
	h.names++
	return fmt.Sprintf("%s%d", prefix, h.names)
}

func (h *history) step() {
	if len(h.volumes) == 0 {
		h.create()
		return
	}
	switch n := h.r.IntN(100); {
	case n < 40:
		h.write()
	case n < 52:
		h.zero()
	case n < 55:
		h.flush()
	case n < 64:
		h.snapshot()
	case n < 67:
		h.snapshotGroup()
	case n < 77:
		h.deleteSnapshot()
	case n < 80:
		h.create()
	case n < 84:
		h.restore()
	case n < 87:
		h.clone()
	case n < 90:
		h.rollback()
	case n < 93:
		h.deleteVolume()
	case n < 95:
		h.grow()
	case n < 97:
		h.reattach()
	case n < 98:
		must(h.t, h.Close(h.t.Context()))
		h.comeBack()
	default:
		must(h.t, h.kill())
		h.comeBack()
	}
}

func (h *history) comeBack() {
	h.reopen()
	for _, v := range h.volumes {
		v.dev = h.open(v.name)
	}
}

func (h *history) anyVolume() *modelVolume {
	names := sortedKeys(h.volumes)
	return h.volumes[names[h.r.IntN(len(names))]]
}

func (h *history) anySnapshot() (string, modelSnapshot, bool) {
	if len(h.snapshots) == 0 {
		return "", modelSnapshot{}, false
	}
	names := sortedKeys(h.snapshots)
	name := names[h.r.IntN(len(names))]
	return name, h.snapshots[name], true
}

func sortedKeys[V any](m map[string]V) (keys []string) {
	for k := range m {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (h *history) create() {
	if len(h.volumes) >= 5 {
		return
	}
	v := &modelVolume{name: h.name("v")}
	size := int64(1+h.r.IntN(10)) << 20
	v.dev = h.volume(v.name, size)
	v.img = make(image, size/sectorSize)
	h.changed(v, 0, 0) // the beginning of its family
	h.volumes[v.name] = v
}

func (h *history) span(v *modelVolume) (off, n int64) {
	sectors := int64(len(v.img))
	off = h.r.Int64N(sectors)
	n = 1 + h.r.Int64N(min(sectors-off, 40))
	switch h.r.IntN(10) {
	case 0, 1, 2, 3: // whole blocks
		off = off / sectorsPerBlock * sectorsPerBlock
		n = min(sectors-off, sectorsPerBlock*(1+h.r.Int64N(8)))
	case 4: // large, over pages
		n = 1 + h.r.Int64N(sectors-off)
	}
	return off * sectorSize, n * sectorSize
}

func (h *history) write() {
	v := h.anyVolume()
	for range 1 + h.r.IntN(20) {
		off, n := h.span(v)
		h.stamp++
		h.changed(v, off, n)
		for i := off / sectorSize; i < (off+n)/sectorSize; i++ {
			v.img[i] = h.stamp<<20 | uint64(i)
		}
		if _, err := v.dev.WriteAt(v.img.bytes(off, n), off); err != nil {
			h.t.Fatal(err)
		}
	}
}

func (h *history) zero() {
	v := h.anyVolume()
	off, n := h.span(v)
	h.changed(v, off, n)
	clear(v.img[off/sectorSize : (off+n)/sectorSize])
	if h.r.IntN(2) == 0 {
		must(h.t, v.dev.Discard(off, n))
	} else {
		must(h.t, v.dev.WriteZeroes(off, n))
	}
}

func (h *history) flush() { must(h.t, h.anyVolume().dev.Flush()) }

func (h *history) snapshot() {
	if len(h.snapshots) >= 12 {
		return
	}
	v := h.anyVolume()
	name := h.name("s")
	_, err := h.CreateSnapshot(h.t.Context(), SnapshotSpec{Name: name, Volume: v.name})
	must(h.t, err)
	h.snapshots[name] = modelSnapshot{v.name, slices.Clone(v.img), slices.Clone(v.log)}
}

func (h *history) deleteSnapshot() {
	if name, _, ok := h.anySnapshot(); ok {
		must(h.t, h.DeleteSnapshot(h.t.Context(), name))
		delete(h.snapshots, name)
		if h.r.IntN(2) == 0 {
			h.jobsDone()
			h.check()
		}
	}
}

// snapshotGroup cuts some of the volumes at once, open and closed ones.
func (h *history) snapshotGroup() {
	if len(h.snapshots) >= 12 {
		return
	}
	names := sortedKeys(h.volumes)
	h.r.Shuffle(len(names), func(i, j int) { names[i], names[j] = names[j], names[i] })
	spec := SnapshotGroupSpec{Name: h.name("g")}
	for _, name := range names[:1+h.r.IntN(len(names))] {
		v := h.volumes[name]
		if h.r.IntN(3) == 0 {
			must(h.t, v.dev.Close(h.t.Context()))
			defer func() { v.dev = h.open(v.name) }()
		}
		spec.Snapshots = append(spec.Snapshots, SnapshotSpec{Name: spec.Name + "-" + name, Volume: name})
		h.snapshots[spec.Name+"-"+name] = modelSnapshot{name, slices.Clone(v.img), slices.Clone(v.log)}
	}
	infos, err := h.CreateSnapshotGroup(h.t.Context(), spec)
	must(h.t, err)
	for i, info := range infos {
		if info.Name != spec.Snapshots[i].Name || info.Volume != spec.Snapshots[i].Volume || info.Group != spec.Name {
			h.t.Fatalf("asked for %+v of group %s, got %+v", spec.Snapshots[i], spec.Name, info)
		}
	}
}

func (h *history) from(spec VolumeSpec, img image, log []modelEvent) {
	if len(h.volumes) >= 5 {
		return
	}
	spec.Name = h.name("r")
	img = slices.Clone(img)
	if h.r.IntN(2) == 0 {
		img = append(img, make(image, h.r.IntN(4)<<20/sectorSize)...)
		spec.Size = int64(len(img)) * sectorSize
	}
	_, err := h.CreateVolume(h.t.Context(), spec)
	must(h.t, err)
	h.volumes[spec.Name] = &modelVolume{spec.Name, h.open(spec.Name), img, slices.Clone(log)}
}

func (h *history) restore() {
	if name, s, ok := h.anySnapshot(); ok {
		h.from(VolumeSpec{FromSnapshot: name}, s.img, s.log)
	}
}

func (h *history) clone() {
	v := h.anyVolume()
	h.from(VolumeSpec{FromVolume: v.name}, v.img, v.log)
}

func (h *history) rollback() {
	name, s, ok := h.anySnapshot()
	v := h.volumes[s.volume]
	if !ok || v == nil {
		return
	}
	must(h.t, v.dev.Close(h.t.Context()))
	_, err := h.Pool.RollbackVolume(h.t.Context(), v.name, name)
	must(h.t, err)
	v.dev = h.open(v.name)
	clear(v.img)
	copy(v.img, s.img)
	v.log = slices.Clone(s.log)
}

func (h *history) deleteVolume() {
	v := h.anyVolume()
	must(h.t, v.dev.Close(h.t.Context()))
	must(h.t, h.DeleteVolume(h.t.Context(), v.name))
	delete(h.volumes, v.name)
}

func (h *history) grow() {
	v := h.anyVolume()
	v.img = append(v.img, make(image, 1<<20/sectorSize)...)
	_, err := h.GrowVolume(h.t.Context(), v.name, int64(len(v.img))*sectorSize)
	must(h.t, err)
}

func (h *history) reattach() {
	v := h.anyVolume()
	must(h.t, v.dev.Close(h.t.Context()))
	v.dev = h.open(v.name)
}

// verify compares every volume and every snapshot with the model.
func (h *history) verify() {
	h.t.Helper()
	h.check()
	for _, name := range sortedKeys(h.volumes) {
		v := h.volumes[name]
		h.compare("volume "+name, v.dev, v.img)
	}
	for _, name := range sortedKeys(h.snapshots) {
		s := h.snapshots[name]
		r, err := h.OpenSnapshot(h.t.Context(), name)
		must(h.t, err)
		h.compare("snapshot "+name, r, s.img)
		must(h.t, r.Close())
	}
	h.verifyDiffs()
}

func (h *history) compare(what string, dev interface {
	ReadAt([]byte, int64) (int, error)
	Size() int64
}, img image) {
	h.t.Helper()
	size := int64(len(img)) * sectorSize
	if dev.Size() != size {
		h.t.Fatalf("%s has %d bytes, want %d", what, dev.Size(), size)
	}
	got := make([]byte, size)
	if _, err := dev.ReadAt(got, 0); err != nil {
		h.t.Fatal(err)
	}
	want := img.bytes(0, size)
	if bytes.Equal(got, want) {
		return
	}
	for i := range img {
		if !bytes.Equal(got[i*sectorSize:(i+1)*sectorSize], want[i*sectorSize:(i+1)*sectorSize]) {
			h.t.Fatalf("%s: sector %d (block %d) is wrong: has %x, want %x", what, i, i/sectorsPerBlock, got[i*sectorSize:i*sectorSize+8],
				want[i*sectorSize:i*sectorSize+8])
		}
	}
}

// deleteAll removes everything; then nothing may be in use.
func (h *history) deleteAll() {
	for _, name := range sortedKeys(h.snapshots) {
		must(h.t, h.DeleteSnapshot(h.t.Context(), name))
	}
	for _, name := range sortedKeys(h.volumes) {
		must(h.t, h.volumes[name].dev.Close(h.t.Context()))
		must(h.t, h.DeleteVolume(h.t.Context(), name))
	}
	h.jobsDone()
	h.check()
	if info := h.Info(); info.Used != 0 || len(h.catalogue.layers) != 0 {
		h.t.Fatalf("everything is deleted, and %d bytes in %d layers are in use", info.Used, len(h.catalogue.layers))
	}
}

package engine

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/format"
	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

var updateOrder = flag.Bool("update", false, "write the golden texts of testdata/order again")

// script is a pool whose ordered effects are written down: what is done to segments, flush file, metadata log and ring, and the steps of the rules in
// mutate.go, between what the guest asks and is answered.
type script struct {
	*testPool
	disk  *fsys.Mem
	tape  *fsys.Tape
	mu    sync.Mutex
	marks []string
	names map[int32]string
	flush string // the rule that asks for a member flush here
	store bool   // what happens to the metadata's files and to superblocks is written down, too
}

// notes are what a rule says of the step that it is named at.
var notes = map[mutation]string{
	mutateGates:       "gates are shut, and nobody is inside",
	mutateRetire:      "the ring's entries are retired",
	mutateReuseSynced: "freed blocks are let go",
	mutateReusePinned: "older pins have ended: the blocks can be handed out",
	mutateJoin:        "heads learn of the join",
	mutateReserve:     "reserved chunks are handed out",
	mutateMetaSynced:  "the copy is whole and open; nothing was committed since",
	mutateMetaSwitch:  "the committer and new reads use the copy",
	mutateMetaNamed:   "the old store's last reader is waited for, and its files go",
	mutateCopySynced:  "maps show the copy; older readers are waited for",
}

func newScript(t *testing.T) *script {
	s := &script{disk: fsys.NewMem(), names: map[int32]string{}, flush: "RoundFlush"}
	_, s.tape = s.disk.Record()
	o := testOptions(t)
	o.Observer, o.fs, o.bootID, o.ChecksumRate = nil, s.disk, &[16]byte{1}, -1
	o.wroteRing = func(off int64, p []byte) {
		switch {
		case len(p) != 64 || binary.LittleEndian.Uint32(p[60:]) == 0: // the header, or an entry that is not whole yet
			return
		case binary.LittleEndian.Uint64(p[24:]) == ^uint64(0):
			s.mark(fmt.Sprintf("ring: %d of its blocks from %d on are zeroes", binary.LittleEndian.Uint32(p[32:]), binary.LittleEndian.Uint64(p[16:])), "Ring: before the answer")
		default:
			s.mark(fmt.Sprintf("ring: %d of its blocks from %d on", binary.LittleEndian.Uint32(p[32:]), binary.LittleEndian.Uint64(p[16:])), "Ring: before the answer")
		}
	}
	o.did = func(m mutation) { s.mark(notes[m], mutationNames[m]) }
	p, err := CreatePool(t.Context(), PoolSpec{Name: "p", Directory: "/pool", Size: MinPoolSize}, o)
	must(t, err)
	s.testPool = &testPool{t, p, o, "/pool"}
	t.Cleanup(func() { _ = s.kill() })
	s.quiet()
	return s
}

func (s *script) mark(what, rule string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if rule != "" {
		what = fmt.Sprintf("  %-56s # %s", what, rule)
	}
	s.marks = append(s.marks, what)
	s.disk.Mark(len(s.marks) - 1)
}

// ask marks what a guest asks and that it was answered.
func (s *script) ask(what string, f func() error) {
	s.t.Helper()
	s.mark(what, "")
	must(s.t, f())
	s.mark("answered", "")
}

// text is what the tape has from a step on.
func (s *script) text(from int) string {
	var lines []string
	open := map[int]int{} // operation: the line that says it has begun
	for i, step := range s.tape.Steps {
		s.learn(step)
		if i < from {
			continue
		}
		if step.Kind == fsys.StepMark {
			lines = append(lines, s.marks[step.Operation])
			continue
		}
		what, rule, kind := s.effect(step)
		switch {
		case kind == begins:
			open[step.Operation] = len(lines)
			lines = append(lines, fmt.Sprintf("  %-56s # %s", what, rule))
		case kind == ends:
			if at, ok := open[step.Operation]; ok && at < len(lines)-1 {
				lines = append(lines, "  … "+strings.TrimSpace(strings.Split(lines[at], " # ")[0])+": done")
			}
		}
	}
	return strings.Join(lines, "\n") + "\n"
}

const (
	neither = iota
	begins
	ends
)

func (s *script) learn(step fsys.Step) {
	if step.Made() {
		s.names[step.Other] = step.Name
	}
	if to, ok := step.Renamed(); ok {
		for n, name := range s.names {
			if name == step.Name {
				s.names[n] = to
			}
		}
	}
}

// effect names a step that matters; what goes on behind (zeroes ahead, Pebble's tables) does not.
func (s *script) effect(step fsys.Step) (what, rule string, kind int) {
	name := s.names[step.Node]
	begin, write, sync := step.Begins()
	if what, rule := s.moving(name, step); what != "" && begin {
		return what, rule, begins
	}
	switch ext := filepath.Ext(name); {
	case step.Ends():
		return "", "", ends
	case !begin:
		return "", "", neither
	case write && ext == ".seg" && step.Data != nil && len(bytes.Trim(step.Data, "\x00")) > 0:
		return fmt.Sprintf("write %d sectors of data", step.Len/sectorSize), "Publish: before the ring and the map have it", begins
	case sync && (ext == ".seg" || name == "flush"):
		return "sync the " + map[bool]string{true: "segment", false: "flush file"}[ext == ".seg"],
			s.flush + ": after the data, before the commit", begins
	case write && name == flushLogName && len(bytes.Trim(step.Data, "\x00")) > 0:
		return "write the flush log, durably", "LogFlush: after the data; the answer waits for it", begins
	case write && ext == ".log" && step.Off == 0:
		return "give the next log its place, durably", "before the log's first record", begins
	case write && ext == ".log":
		return "write the metadata log, durably", "the commit: what follows waits for it", begins
	}
	return "", "", neither
}

// moving names a step of a move of the metadata.
func (s *script) moving(name string, step fsys.Step) (what, rule string) {
	_, write, sync := step.Begins()
	switch {
	case !s.store:
	case write && name == "rowan.pool.tmp":
		sb, err := format.DecodeSuperblock(step.Data)
		if err != nil {
			return err.Error(), ""
		}
		what = fmt.Sprintf("superblock of member %d: metadata %d", sb.MemberIndex, sb.Metadata)
		if sb.Incompatible&format.FlushLog != 0 {
			what += ", flush log"
		}
		switch {
		case !sb.MovingTo.IsZero():
			return what + ", moving", "MetaNamed: before the copy is made"
		case sb.Metadata == 0:
			return what, "after the switch"
		}
		return what, "MetaSwitch: before the old place is given up"
	case sync && name == "rowan.pool.tmp":
		return "sync the superblock", "then it is renamed"
	case sync && filepath.Ext(name) == ".sst":
		return "sync a table", "MetaSynced: before the switch"
	case sync && strings.HasPrefix(name, "MANIFEST"):
		return "sync a manifest", "MetaSynced: before the switch"
	}
	return what, rule
}

// orders are the texts. Each returns the step of the tape from which on it is written down.
var orders = map[string]func(s *script) (from int){
	"metadata-move": func(s *script) int {
		must(s.t, put(s.volume("v", 1<<20), 0, BlockSize, 1))
		_, err := s.AddMember(s.t.Context(), MemberSpec{Directory: "/other", Size: MinPoolSize})
		must(s.t, err)
		s.quiet()
		must(s.t, s.Pool.flush())
		m := *s.members.table.Load().list[0]
		m.rec.State = format.MemberDraining
		must(s.t, s.putMember(&m))
		s.store = true
		from := len(s.tape.Steps)
		mv := &metaMove{p: s.Pool, from: &m, number: 1, old: s.Pool.store.db.at}
		s.ask("move the metadata to the other member", func() error { return errors.Join(mv.target(), mv.prepare(), mv.carry(), mv.leave()) })
		return from
	},
	"first-write-and-flush-row": func(s *script) int {
		v := s.volume("v", 1<<20)
		from := len(s.tape.Steps)
		s.ask("write a block", func() error { return put(v, 0, BlockSize, 1) })
		s.ask("flush", v.Flush)
		s.ask("write the block again", func() error { return put(v, 0, BlockSize, 2) })
		s.ask("flush", v.Flush)
		s.ask("write a sector of a new block", func() error { return put(v, 8*BlockSize+sectorSize, sectorSize, 3) })
		s.ask("write 256 KiB, to reserved space", func() error { return put(v, 256<<10, 256<<10, 4) })
		s.ask("flush", v.Flush)
		s.ask("commit what is pending", s.Pool.flush)
		return from
	},
	"first-write-and-flush-cow": func(s *script) int {
		s.flush = "CopyFlush, RoundFlush"
		_, err := s.CreateVolume(context.Background(), VolumeSpec{Name: "v", Size: 1 << 20, Mode: CopyOnWrite})
		must(s.t, err)
		v := s.open("v")
		must(s.t, put(v, 0, BlockSize, 1))
		must(s.t, s.snap("s", "v"))
		from := len(s.tape.Steps)
		s.ask("write a block that the snapshot keeps", func() error { return put(v, 0, BlockSize, 2) })
		s.ask("flush", v.Flush)
		s.ask("write the block again", func() error { return put(v, 0, BlockSize, 3) })
		return from
	},
	"cut": func(s *script) int {
		s.flush = "CutFlush"
		v := s.volume("v", 1<<20)
		must(s.t, put(v, 0, BlockSize, 1))
		from := len(s.tape.Steps)
		s.ask("snapshot", func() error { return s.snap("s", "v") })
		s.ask("write the block again, redirected", func() error { return put(v, 0, BlockSize, 2) })
		return from
	},
	"group": func(s *script) int {
		s.flush = "CutFlush"
		v, w := s.volume("v", 1<<20), s.volume("w", 1<<20)
		must(s.t, put(v, 0, BlockSize, 1))
		must(s.t, put(w, 0, BlockSize, 1))
		from := len(s.tape.Steps)
		s.ask("snapshots of v and w", func() error {
			_, err := s.CreateSnapshotGroup(context.Background(), SnapshotGroupSpec{
				Name: "g", Snapshots: []SnapshotSpec{{Name: "a", Volume: "v"}, {Name: "b", Volume: "w"}},
			})
			return err
		})
		return from
	},
	"join": func(s *script) int {
		v := s.volume("v", 1<<20)
		must(s.t, put(v, 0, 4*BlockSize, 1))
		must(s.t, s.snap("s", "v"))
		must(s.t, put(v, 0, 2*BlockSize, 2))
		must(s.t, s.Pool.flush())
		from := len(s.tape.Steps)
		s.ask("delete the snapshot, and wait for the pass", func() error {
			return errors.Join(s.DeleteSnapshot(context.Background(), "s"), s.WaitJobs(context.Background()))
		})
		s.ask("write a block that was the snapshot's, in place", func() error { return put(v, 2*BlockSize, BlockSize, 3) })
		return from
	},
	"discard-and-reuse": func(s *script) int {
		v := s.volume("v", 1<<20)
		must(s.t, put(v, 0, 4*BlockSize, 1))
		must(s.t, s.Pool.flush())
		from := len(s.tape.Steps)
		s.ask("discard", func() error { return v.Discard(0, 4*BlockSize) })
		s.ask("flush", v.Flush)
		s.ask("commit what is pending", s.Pool.flush)
		return from
	},
	"open-after-a-kill": func(s *script) int {
		v := s.volume("v", 1<<20)
		s.rounds.turn.Lock() // no round commits them
		must(s.t, put(v, 0, BlockSize, 1))
		must(s.t, v.Discard(4*BlockSize, BlockSize))
		must(s.t, put(v, 2*BlockSize, BlockSize, 1))
		s.rounds.turn.Unlock()
		s.flush = "ReplayFlush"
		must(s.t, s.kill())
		from := len(s.tape.Steps)
		s.ask("open", func() (err error) {
			s.Pool, err = OpenPool(context.Background(), s.dir, s.o)
			return err
		})
		return from
	},
}

func put(v *Volume, off, n int, with byte) error {
	_, err := v.WriteAt(bytes.Repeat([]byte{with}, n), int64(off))
	return err
}

func (s *script) snap(name, volume string) error {
	_, err := s.CreateSnapshot(context.Background(), SnapshotSpec{Name: name, Volume: volume})
	return err
}

// TestOrder compares the ordered effects of operations with what is written down, rule by rule. -update writes them anew: read the difference as you would
// read a change of the rules.
func TestOrder(t *testing.T) {
	for _, name := range sortedKeys(orders) {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits a second for its pool to come to rest
			file := filepath.Join("testdata", "order", name+".txt")
			want, _ := os.ReadFile(file)
			var got string
			// The timer's round may come in between: once a second, and where that was it is not again.
			for range 3 {
				s := newScript(t)
				from := orders[name](s)
				s.disk.StopRecording()
				if got = s.text(from); got == string(want) {
					return
				}
			}
			if *updateOrder {
				must(t, os.MkdirAll(filepath.Dir(file), 0o755))
				must(t, os.WriteFile(file, []byte(got), 0o644))
				return
			}
			t.Errorf("the order is\n%s\nand should be\n%s", got, want)
		})
	}
}

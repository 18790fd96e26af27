package fsys

import (
	"bytes"
	"fmt"
)

// Tape is the ordered record of every change of a Mem: what began, what ended, and the marks that its user put in between. Played from the start it makes
// any state that the Mem has been in, so one recorded run can be cut anywhere, as often as one likes. It can be stored with encoding/gob.
type Tape struct {
	Steps []Step
}

// Step is one step of a Tape. Writes and syncs have two, so that a cut can come in the middle of them.
type Step struct {
	Kind      StepKind
	Node      int32  // the file or folder
	Other     int32  // of stepRename: the folder it goes to; of stepMake and stepMkdir: the number of what is made
	Name, To  string // in their folders
	Off, Len  int64
	Data      []byte // of stepWrite; nil: zeroes
	Direct    bool
	Operation int // pairs what begins with what ends; of StepMark: the mark
}

// StepKind names a kind of step.
type StepKind uint8

// StepMark is a mark; all others are the file system's.
const (
	StepMark StepKind = iota
	stepMake
	stepMkdir
	stepRemove
	stepRename
	stepSyncDir
	stepSyncedDir
	stepWrite
	stepWritten
	stepWrittenDurably
	stepSync
	stepSynced
	stepTruncate
	stepAllocate
	stepPunch
)

// EndsSync tells whether the step makes something durable.
func (s Step) EndsSync() bool { return s.Kind == stepWrittenDurably || s.Kind == stepSynced }

// Record begins a tape of what happens from now on, and returns with it the state that it begins with, for Play.
func (m *Mem) Record() (*Mem, *Tape) {
	start := m.KillClone(nil)
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tape = &Tape{}
	return start, m.tape
}

// Mark puts a mark on the tape, between the changes that ended before the call and those that begin after it.
func (m *Mem) Mark(mark int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.note(Step{Kind: StepMark, Operation: mark})
}

// StopRecording ends the tape, which its Mem does not touch any more.
func (m *Mem) StopRecording() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.tape = nil
}

func (m *Mem) note(s Step) {
	if m.tape != nil {
		m.tape.Steps = append(m.tape.Steps, s)
	}
}

// noted returns a copy of what is written, as a tape keeps it.
func noted(p []byte) []byte {
	if len(bytes.Trim(p, "\x00")) == 0 {
		return nil
	}
	return bytes.Clone(p)
}

// Player plays a tape on a Mem.
type Player struct {
	Mem   *Mem // the state reached; only for CrashClone and KillClone
	steps []Step
	nodes map[int32]*memNode
}

// Play begins to play a tape from its start, which is used up by it.
func Play(start *Mem, t *Tape) *Player {
	p := &Player{Mem: start, steps: t.Steps, nodes: map[int32]*memNode{}}
	p.learn(start.root)
	return p
}

func (p *Player) learn(n *memNode) {
	if _, ok := p.nodes[n.number]; ok {
		return
	}
	p.nodes[n.number] = n
	for _, names := range append([]memNames{{names: n.names}, {names: n.durable}}, n.later...) {
		for _, child := range names.names {
			p.learn(child)
		}
	}
}

// Next plays one step and returns it; false at the end of the tape.
func (p *Player) Next() (Step, bool) {
	if len(p.steps) == 0 {
		return Step{}, false
	}
	s := p.steps[0]
	p.steps = p.steps[1:]
	if s.Kind == StepMark {
		return s, true
	}
	p.Mem.mu.Lock()
	defer p.Mem.mu.Unlock()
	node := p.nodes[s.Node]
	if node == nil {
		panic(fmt.Sprintf("fsys: a tape changes node %d before it was made", s.Node))
	}
	if made := p.Mem.apply(s, node, p.nodes[s.Other]); made != nil {
		p.nodes[s.Other] = made
	}
	return s, true
}

// do makes a change and notes it. The lock is held.
func (m *Mem) do(s Step, node, other *memNode) *memNode {
	s.Node = node.number
	switch {
	case s.Kind == stepMake, s.Kind == stepMkdir:
		s.Other = m.number()
	case other != nil:
		s.Other = other.number
	}
	made := m.apply(s, node, other)
	if m.tape != nil {
		if s.Kind == stepWrite {
			s.Data = noted(s.Data)
		}
		m.note(s)
	}
	return made
}

// apply makes a change, now or again. other is where stepRename goes to; what stepMake and stepMkdir make is returned.
func (m *Mem) apply(s Step, node, other *memNode) (made *memNode) {
	m.clock++
	switch s.Kind {
	case stepMake, stepMkdir:
		made = m.newNode(node.device, s.Kind == stepMkdir, s.Other)
		node.names[s.Name] = made
		node.changed(m.clock)
	case stepRemove:
		delete(node.names, s.Name)
		node.changed(m.clock)
	case stepRename:
		other.names[s.To] = node.names[s.Name]
		if node != other || s.To != s.Name {
			delete(node.names, s.Name)
		}
		node.changed(m.clock)
		if node != other {
			node.settle()
			other.settle()
		}
	case stepSyncDir, stepSync:
		m.syncs[s.Operation] = m.clock
	case stepSyncedDir:
		node.sync(m.ended(s.Operation))
	case stepSynced:
		node.data.sync(m.ended(s.Operation))
	case stepWrite:
		w := &memChange{}
		m.writes[s.Operation] = w
		data := s.Data
		if data == nil {
			data = make([]byte, s.Len)
		}
		node.data.write(data, s.Off, s.Direct, w)
	case stepWritten, stepWrittenDurably:
		w := m.writes[s.Operation]
		delete(m.writes, s.Operation)
		w.ended = m.clock
		if s.Kind == stepWrittenDurably {
			node.data.settle(s.Off, s.Len, w)
		}
	case stepTruncate:
		node.data.truncate(s.Off, &memChange{m.clock})
	case stepAllocate:
		node.data.allocate(s.Off, s.Len, &memChange{m.clock})
	case stepPunch:
		node.data.zero(s.Off, s.Len, &memChange{m.clock})
	}
	return made
}

// ended returns when the sync began that ends now: what had returned then is durable, and nothing else.
func (m *Mem) ended(operation int) uint64 {
	began := m.syncs[operation]
	delete(m.syncs, operation)
	return began
}

func (m *Mem) operation() int {
	m.operations++
	return m.operations
}

// Begins tells whether the step begins a write or a sync of a file.
func (s Step) Begins() (begins, write, sync bool) {
	return s.Kind == stepWrite || s.Kind == stepSync, s.Kind == stepWrite, s.Kind == stepSync
}

// Ends tells whether the step ends one, which has the same Operation.
func (s Step) Ends() bool {
	return s.Kind == stepWritten || s.Kind == stepWrittenDurably || s.Kind == stepSynced
}

// Made tells whether the step makes a file or folder: Other, with the name Name.
func (s Step) Made() bool { return s.Kind == stepMake || s.Kind == stepMkdir }

// Renamed returns the new name that the step gives what is called Name.
func (s Step) Renamed() (to string, ok bool) { return s.To, s.Kind == stepRename }

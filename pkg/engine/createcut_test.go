package engine

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

// creation is a pool that was made, step by step.
type creation struct {
	spec  PoolSpec
	start *fsys.Mem
	tape  *fsys.Tape
	done  int // steps until CreatePool returned
	ring  []byte
	name  string // of the ring's file
}

func recordCreation(t *testing.T, o Options, spec PoolSpec) creation {
	t.Helper()
	disk := crashDisk()
	start, tape := disk.Record()
	o.fs, o.bootID = disk, &[16]byte{1}
	p, err := CreatePool(t.Context(), spec, o)
	must(t, err)
	c := creation{spec: spec, start: start, tape: tape, done: len(tape.Steps)}
	rings, err := filepath.Glob(filepath.Join(o.RingDir, "*.ring"))
	must(t, err)
	if len(rings) != 1 {
		t.Fatalf("rings: %v", rings)
	}
	c.name = filepath.Base(rings[0])
	c.ring, err = os.ReadFile(rings[0])
	must(t, err)
	must(t, (&testPool{t: t, Pool: p}).kill())
	disk.StopRecording()
	return c
}

// judge opens what a creation has left after some of its steps, as who made the pool would, and makes it anew if it is not there.
func (c creation) judge(o Options, steps int, power bool, choice uint64) (found bool, err error) {
	player := fsys.Play(c.start, c.tape)
	for range steps {
		player.Next()
	}
	rng := rand.New(rand.NewPCG(choice, 1))
	o.bootID = &[16]byte{1}
	if o.fs = player.Mem.KillClone(rng); power {
		o.fs, o.bootID = player.Mem.CrashClone(rng), &[16]byte{2}
	}
	if o.RingDir, err = os.MkdirTemp(o.RingDir, "cut"); err != nil {
		return false, err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.RingDir)) }()
	if err := os.WriteFile(filepath.Join(o.RingDir, c.name), c.ring, 0o600); err != nil {
		return false, err
	}
	ctx := context.Background()
	for _, m := range c.spec.More {
		o.Members = append(o.Members, m.Directory)
	}
	p, err := OpenPool(ctx, c.spec.Directory, o)
	if found = err == nil; errors.Is(err, ErrNotFound) {
		if p, err = CreatePool(ctx, c.spec, o); err != nil {
			return false, fmt.Errorf("make it anew: %w", err)
		}
	}
	if err != nil {
		return found, err
	}
	for again := range 2 {
		tp := &testPool{Pool: p}
		if i := p.Info(); i.State != "Ready" || len(i.Members) != 1+len(c.spec.More) {
			return found, errors.Join(fmt.Errorf("the pool is %s, of %d members", i.State, len(i.Members)), tp.kill())
		}
		if err := errors.Join(tp.sound(), p.Close(ctx)); err != nil || again > 0 {
			return found, err
		}
		if p, err = OpenPool(ctx, c.spec.Directory, o); err != nil {
			return found, fmt.Errorf("open it again: %w", err)
		}
	}
	return found, nil
}

// cutAnywhere judges a creation after each of its steps.
func (c creation) cutAnywhere(o Options) error {
	for steps := 0; steps <= c.done; steps++ {
		for choice := range uint64(3) {
			power := choice > 0
			found, err := c.judge(o, steps, power, choice)
			if err == nil && steps == c.done && !found {
				err = errors.New("CreatePool had returned, and the pool is not there")
			}
			if err != nil {
				return fmt.Errorf("after %d of %d steps, power cut %v, choice %d: %w", steps, c.done, power, choice, err)
			}
		}
	}
	return nil
}

// A pool whose making is interrupted anywhere, by a power cut or the process's death, is there and whole, or not there, and then it can be made again at the
// same places. One that says too early that it is finished is found to be broken.
func TestInterruptedCreate(t *testing.T) {
	for name, more := range map[string][]MemberSpec{"one member": nil, "two": {{Directory: "/second/pool", Size: MinPoolSize}}} {
		t.Run(name, func(t *testing.T) {
			o := crashOptions(t)
			o.RingDir = ringFolder(t)
			spec := PoolSpec{Name: "p", Directory: "/pool", Size: MinPoolSize, More: more}
			c := recordCreation(t, o, spec)
			t.Logf("%d steps", c.done)
			if err := c.cutAnywhere(o); err != nil {
				t.Error(err)
			}
			o.mutate, o.RingDir = mutateFinish, ringFolder(t)
			broken := recordCreation(t, o, spec)
			o.mutate = mutateNothing
			if err := broken.cutAnywhere(o); !errors.Is(err, ErrCorrupt) {
				t.Errorf("with superblocks that are finished first: %v", err)
			}
		})
	}
}

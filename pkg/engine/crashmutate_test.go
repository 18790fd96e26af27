package engine

import (
	"fmt"
	"math/rand/v2"
	"testing"
)

var mutationNames = [mutations]string{
	mutateRoundFlush: "RoundFlush", mutateCutFlush: "CutFlush", mutateCutFlushEarly: "CutFlushEarly", mutateReplayFlush: "ReplayFlush",
	mutatePublish: "Publish", mutateRing: "Ring",
	mutateJoinRound: "JoinRound", mutateReuseSynced: "ReuseSynced", mutateReusePinned: "ReusePinned", mutateReadPin: "ReadPin", mutateGates: "Gates",
	mutateRetire: "Retire", mutateJoin: "Join", mutateReserve: "Reserve", mutateNewBlockInParts: "NewBlockInParts",
	mutateSegmentSync: "SegmentSync", mutateUnsynced: "Unsynced", mutateLocks: "Locks",
	mutateCopyFlush: "CopyFlush", mutateMovePins: "MovePins", mutateMoveMark: "MoveMark",
	mutateSumDrop: "SumDrop", mutateSumVoid: "SumVoid",
	mutateCopySynced: "CopySynced", mutateCopyPinned: "CopyPinned", mutateCopyPublish: "CopyPublish",
	mutateFlushOne: "FlushOne", mutateCombine: "Combine", mutateLogFlush: "LogFlush", mutateLogRoom: "LogRoom",
	mutateRemoveMoved: "RemoveMoved", mutateRemoveSynced: "RemoveSynced", mutateDrainRoom: "DrainRoom", mutateGrowthLimit: "GrowthLimit",
	mutateRollbackHeld: "RollbackHeld",
	mutateMetaNamed:    "MetaNamed", mutateMetaSynced: "MetaSynced", mutateMetaPause: "MetaPause", mutateMetaSwitch: "MetaSwitch",
}

// TestCrashFindsMutations breaks one rule at a time: the run, or a cut of it, must show it. A harness that finds nothing proves nothing.
func TestCrashFindsMutations(t *testing.T) {
	for m := mutateNothing + 1; m < mutations; m++ {
		t.Run(mutationNames[m], func(t *testing.T) {
			for try := range *crashTries {
				if how := findMutation(t, m, uint64(try+1)); how != nil {
					t.Logf("recording %d, %.300v", try+1, how)
					return
				}
			}
			t.Errorf("not found in %d recordings", *crashTries)
		})
	}
}

// findMutation returns how a mutation showed, or nil.
func findMutation(t *testing.T, m mutation, seed uint64) error {
	o := crashOptions(t)
	o.RingDir, o.mutate = ringFolder(t), m
	r, err := record(seed, o)
	if err != nil {
		return fmt.Errorf("the run itself: %w", err)
	}
	if c, err := crashAll(t, r, r.cuts(*crashEach, rand.New(rand.NewPCG(seed, 1))), o); err != nil {
		return fmt.Errorf("%v: %w", c, err)
	}
	return nil
}

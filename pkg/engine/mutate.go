package engine

// mutation names a rule that a test breaks in one pool, to see that the crash tests notice. The zero value breaks none, and nothing but tests of this
// package can set another. It is asked where the rule is kept, so each such place also says what it is for.
type mutation uint8

const (
	mutateNothing         mutation = iota
	mutateRoundFlush               // a round commits runs without a member flush
	mutateCutFlush                 // a cut does
	mutateCutFlushEarly            // a cut flushes the members before its gates are shut
	mutateReplayFlush              // the open sequence does
	mutatePublish                  // a run is published before its data is written
	mutateRing                     // a write is acknowledged without its entry in the ring
	mutateJoinRound                // a FLUSH joins the round under way
	mutateReuseSynced              // blocks are reused before the commit that freed them is durable
	mutateReusePinned              // blocks are reused while older pins last
	mutateReadPin                  // reads do not pin
	mutateGates                    // a cut shuts no gates
	mutateRetire                   // ring entries are retired before their commit's sync
	mutateJoin                     // heads learn of a join before its commit's sync
	mutateReserve                  // reserved chunks are handed out before their commit's sync
	mutateFlushOne                 // of several members only one is flushed
	mutateNewBlockInParts          // of a new block only the guest's bytes are written
	mutateSegmentSync              // a member flush leaves out the segments written in unwritten extents
	mutateUnsynced                 // the open sequence's member flush leaves out the segments that the process before it wrote so
	mutateLocks                    // a pool is opened while a dead process's I/O is under way; package member keeps this, the test's locks do not hold
	mutateCopyFlush                // a move's run is committed without a flush of its copy's member
	mutateMovePins                 // what heads own is copied while writes in place are under way
	mutateMoveMark                 // writes in place do not ask for marks
	mutateSumDrop                  // a join with a head leaves its generations their checksums until the background pass ends
	mutateSumVoid                  // checksums read before a join with a head are stored after it
	mutateCopySynced               // COW overwrites the old place before the commit that gives it to the head is durable
	mutateCopyPinned               // COW overwrites the old place while older pins last
	mutateCopyPublish              // COW overwrites the old place before maps show the copy
	mutateMetaNamed                // the metadata moves off a member whose superblock does not say where to
	mutateMetaSynced               // the superblock gives the metadata to a member before its copy is durable
	mutateMetaPause                // the committer goes on while the last of the metadata is copied
	mutateRemoveMoved              // a member is taken out, and its segments' records with it, before its blocks were moved
	mutateRemoveSynced             // a removed member's files go before the record that it was removed is durable
	mutateMetaSwitch               // the metadata's old place is given up before the new superblock is durable
	mutateDrainRoom                // what thick volumes have on a member that is being drained is not held back on the others
	mutateGrowthLimit              // space is taken though the file system is used beyond the limit of growth
	mutateRollbackHeld             // a volume says that its holder has rolled it back, and lets it go, before it is rolled back
	mutateCombine                  // writes that share a request are acknowledged before it has ended
	mutateLogFlush                 // a flush's record is written without a member flush
	mutateLogRoom                  // a flush's record is written over one whose runs are not committed
	mutations                      // those that TestCrashFindsMutations breaks
	mutateFinish                   // a new pool's superblocks say that it is finished before its record is durable: TestInterruptedCreate breaks it
)

// did tells a test that a rule's step is taken.
func (p *Pool) did(m mutation) {
	if p.options.did != nil && m != mutateNothing {
		p.options.did(m)
	}
}

func (p *Pool) breaks(m mutation) bool { return m != mutateNothing && p.options.mutate == m }

// step is one of those that follow a commit's sync. A mutation takes its step too early, when the batch is applied and not synced.
type step struct {
	rule mutation
	do   func()
}

// commitThen commits and then does the steps, in order, when the commit is durable and before it returns.
func (p *Pool) commitThen(compose func(b *batch) (more bool, err error), steps ...step) error {
	return p.store.run(p.jobThen(compose, steps...))
}

// commitLazily applies, and does the steps when a later commit is durable: see job.lazy.
func (p *Pool) commitLazily(compose func(b *batch) (more bool, err error), steps ...step) error {
	j := p.jobThen(compose, steps...)
	j.lazy = true
	return p.store.run(j)
}

func (p *Pool) jobThen(compose func(b *batch) (more bool, err error), steps ...step) *job {
	j := newJob(compose, func() {
		for _, s := range steps {
			if !p.breaks(s.rule) {
				p.did(s.rule)
				s.do()
			}
		}
	})
	if p.options.mutate != mutateNothing {
		j.applied = func() {
			for _, s := range steps {
				if p.breaks(s.rule) {
					s.do()
				}
			}
		}
	}
	return j
}

package snapshotpolicy

import (
	"sync/atomic"
	"time"

	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"github.com/rowan-csi/rowan/pkg/retention"
)

const (
	firstBackoff = 10 * time.Second
	lastBackoff  = 5 * time.Minute
)

// memory is what this process knows of a policy beside what is written. One pass at a time has it.
type memory struct {
	uid  string
	cost atomic.Int64 // of the last pass, in nanoseconds

	// begun are the last nominal times that a snapshot was made for, by source and schedule: somebody who deletes the newest snapshot does not get it
	// back at once.
	begun map[string]map[string]time.Time
	// unseen are snapshots that were made and that the cache does not show yet.
	unseen map[string]*unseen
	// deleted are snapshots whose deletion was asked for and that the cache shows without it.
	deleted map[types.UID]bool
	// failures of taking, by source, and of deleting, by snapshot.
	failures map[string]*failure
	// told are events that need not be repeated: the last text by what it is about.
	told map[string]string
	// pressure of the pools, as the last plan said.
	pressure []retention.Pressure
	pressing atomic.Pointer[pressing]
}

type unseen struct {
	*observed
	at time.Time
}

// failure of a call about a source or snapshot.
type failure struct {
	message string
	wait    time.Duration
	until   time.Time
}

// remember the memory of a policy; one of another identity begins anew.
func (c *Controller) remember(key client.ObjectKey, uid string) *memory {
	c.mu.Lock()
	defer c.mu.Unlock()
	m := c.memories[key]
	if m == nil || m.uid != uid {
		m = &memory{uid: uid, begun: map[string]map[string]time.Time{}, unseen: map[string]*unseen{}, deleted: map[types.UID]bool{},
			failures: map[string]*failure{}, told: map[string]string{}}
		c.memories[key] = m
	}
	return m
}

func (c *Controller) forget(key client.ObjectKey) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.memories, key)
	forgetMetrics(key)
}

// settle is how long to wait for more events before the next pass over a policy.
func (c *Controller) settle(key client.ObjectKey) time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	if m := c.memories[key]; m != nil {
		return max(c.SettleFor, costShare*time.Duration(m.cost.Load()))
	}
	return c.SettleFor
}

// begin notes what a snapshot was made for.
func (m *memory) begin(source string, runs map[string]time.Time) {
	if m.begun[source] == nil {
		m.begun[source] = map[string]time.Time{}
	}
	for name, at := range runs {
		m.begun[source][name] = at
	}
}

// fail notes a failure and doubles its back-off.
func (m *memory) fail(what, message string, now time.Time) {
	f := m.failures[what]
	if f == nil {
		f = &failure{wait: firstBackoff / 2}
		m.failures[what] = f
	}
	f.message, f.wait = message, min(2*f.wait, lastBackoff)
	f.until = now.Add(f.wait)
}

// waits says until when a call is not to be tried again, and why; nil: it may. A clock that was set back does not make it wait for ages.
func (m *memory) waits(what string, now time.Time) *failure {
	f := m.failures[what]
	if f == nil || !now.Before(f.until) || f.until.Sub(now) > lastBackoff {
		return nil
	}
	return f
}

// news says whether a text about something was not told last.
func (m *memory) news(about, text string) bool {
	if m.told[about] == text {
		return false
	}
	m.told[about] = text
	return true
}

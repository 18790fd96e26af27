package engine

import "sync"

// gate admits a volume's writes, discards and zeroes, and can be shut for a cut: whoever is inside finishes, whoever comes waits.
type gate struct {
	mu     sync.Mutex
	inside int
	opened chan struct{} // not nil while shut; closed when it opens
	idle   chan struct{} // not nil while somebody waits for the last one inside
}

func (g *gate) enter() {
	g.mu.Lock()
	for g.opened != nil {
		opened := g.opened
		g.mu.Unlock()
		<-opened
		g.mu.Lock()
	}
	g.inside++
	g.mu.Unlock()
}

func (g *gate) leave() {
	g.mu.Lock()
	g.inside--
	if g.inside == 0 && g.idle != nil {
		close(g.idle)
		g.idle = nil
	}
	g.mu.Unlock()
}

// shut keeps new ones out. Those inside go on: empty is closed when the last one has left.
func (g *gate) shut() (empty <-chan struct{}) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.opened = make(chan struct{})
	idle := make(chan struct{})
	if g.inside == 0 {
		close(idle)
	} else {
		g.idle = idle
	}
	return idle
}

func (g *gate) open() {
	g.mu.Lock()
	close(g.opened)
	g.opened, g.idle = nil, nil
	g.mu.Unlock()
}

package engine

import "time"

// limiter keeps a background pass to so many bytes a second. What it did not use it may not make up for later, but for a tenth of a second's worth.
type limiter struct {
	rate int64 // bytes a second; 0 or less: no limit
	next time.Time
}

func newLimiter(rate int64) *limiter { return &limiter{rate: rate} }

// wait returns when n bytes more may be read; false: one of the two channels was closed first.
func (l *limiter) wait(stop, done <-chan struct{}, n int) bool {
	var timeout <-chan time.Time
	if now := time.Now(); l.rate > 0 {
		if earliest := now.Add(-time.Second / 10); l.next.Before(earliest) {
			l.next = earliest
		}
		if left := l.next.Sub(now); left > 0 {
			timer := time.NewTimer(left)
			defer timer.Stop()
			timeout = timer.C
		}
		l.next = l.next.Add(time.Duration(float64(n) / float64(l.rate) * float64(time.Second)))
	}
	if timeout == nil {
		select {
		case <-stop:
			return false
		case <-done:
			return false
		default:
			return true
		}
	}
	select {
	case <-stop:
		return false
	case <-done:
		return false
	case <-timeout:
		return true
	}
}

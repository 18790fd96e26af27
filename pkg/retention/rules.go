package retention

import (
	"fmt"
	"time"
)

// Rules is a policy made ready: its expressions parsed, its zones loaded, its defaults filled in. It is never changed, so many may use it at once.
type Rules struct {
	policy    Policy
	zone      *time.Location
	schedules []schedule
	byName    map[string]int
	scopes    []scope // the policy's first
}

// schedule is one of Rules.
type schedule struct {
	Schedule
	cron  *Cron
	scope int // of its snapshots
}

// scope is a retention and what it sees.
type scope struct {
	name string // of the schedule; "" is the policy's
	zone *time.Location
	r    *Retention // nil: prunes nothing
	why  string     // of a nil r
}

// New makes a policy ready. What is wrong is left out of the rules, and said: a schedule with an error takes no snapshots, a retention with an error
// prunes nothing. So a caller that has to go on with what it has may use the rules beside the errors; nothing is pruned that should not be.
func New(p Policy) (*Rules, FieldErrors) {
	c := &checker{}
	c.policy(&p)
	ru := &Rules{policy: p, byName: map[string]int{}}
	if ru.zone = c.zone("timeZone", p.TimeZone); ru.zone == nil {
		ru.zone = time.UTC // nothing is pruned by it: see scopeOf
	}
	ru.scopes = []scope{c.scopeOf("", "retention", p.Retention, ru.zone, "timeZone")}
	if len(p.Schedules) > MaxSchedules {
		c.addf("schedules", "has %d; %d at most", len(p.Schedules), MaxSchedules)
		p.Schedules = p.Schedules[:MaxSchedules]
	}
	for i := range p.Schedules {
		ru.schedule(c, fmt.Sprintf("schedules[%d]", i), &p.Schedules[i])
	}
	return ru, c.errs
}

// schedule checks one and adds it.
func (ru *Rules) schedule(c *checker, path string, s *Schedule) {
	before := len(c.errs)
	if len(s.Name) > MaxName || !dnsLabel.MatchString(s.Name) {
		c.addf(path+".name", "is %q; it must be lower-case letters, digits and hyphens, %d at most", short(s.Name), MaxName)
	}
	if _, twice := ru.byName[s.Name]; twice {
		c.addf(path+".name", "is %q, as another schedule's", short(s.Name))
		return
	}
	zone, zoneField := ru.zone, "timeZone"
	if s.TimeZone != "" {
		zoneField = path + ".timeZone"
		zone = c.zone(zoneField, s.TimeZone)
	}
	if zone == nil {
		zone = time.UTC
	}
	parsed, err := ParseCron(s.Cron, zone)
	if err != nil {
		c.addf(path+".cron", "%v", err)
	}
	c.duration(path+".jitter", s.Jitter, MaxJitter)
	if s.StartingDeadlineSeconds != nil {
		c.between(path+".startingDeadlineSeconds", *s.StartingDeadlineSeconds, 10, MaxDeadline)
	}
	oneOf(c, path+".catchUp", s.CatchUp, CatchUpOne, CatchUpNone)
	oneOf(c, path+".concurrency", s.Concurrency, ConcurrencyForbid, ConcurrencyAllow)
	if c.errs.Under(zoneField) || len(c.errs) > before {
		parsed = nil // takes none: a wrong zone or jitter would take them at wrong times
	}
	sc := schedule{Schedule: *s, cron: parsed}
	if s.Retention != nil {
		sc.scope = len(ru.scopes)
		ru.scopes = append(ru.scopes, c.scopeOf(s.Name, path+".retention", s.Retention, zone, zoneField))
	}
	ru.byName[s.Name] = len(ru.schedules)
	ru.schedules = append(ru.schedules, sc)
}

// scopeOf checks a retention. One that is absent, empty or wrong prunes nothing, and neither does one whose buckets have no zone.
func (c *checker) scopeOf(name, path string, r *Retention, zone *time.Location, zoneField string) scope {
	s := scope{name: name, zone: zone}
	if r == nil {
		s.why = path + " is not given: it prunes nothing"
		return s
	}
	c.retention(path, r, name != "")
	if r.empty() && !c.errs.Under(path) {
		c.addf(path, "is empty; give at least one rule, or leave it out")
	}
	switch {
	case c.errs.Under(path):
		s.why = path + " is wrong: it prunes nothing until that is right"
	case c.errs.Under(zoneField):
		s.why = zoneField + " is wrong: " + path + " prunes nothing until that is right"
	default:
		copied := *r
		s.r = &copied
	}
	return s
}

// Ruled says why a retention of the policy prunes nothing, one sentence each; none if all are in force.
func (ru *Rules) Ruled() []string {
	var why []string
	used := len(ru.schedules) == 0
	for _, s := range ru.schedules {
		used = used || s.scope == 0
	}
	for i, s := range ru.scopes {
		if s.r == nil && (i > 0 || used || s.why != "retention is not given: it prunes nothing") {
			why = append(why, s.why)
		}
	}
	return why
}

// Policy is what the rules were made of.
func (ru *Rules) Policy() Policy { return ru.policy }

// scopesOf are the scopes that a snapshot taken for those schedules belongs to. One for no schedule that there is belongs to the policy's.
func (ru *Rules) scopesOf(schedules []string) []int {
	var scopes []int
	for _, name := range schedules {
		i, ok := ru.byName[name]
		if !ok {
			continue
		}
		s := ru.schedules[i].scope
		if !contains(scopes, s) {
			scopes = append(scopes, s)
		}
	}
	if len(scopes) == 0 {
		return []int{0}
	}
	return scopes
}

func contains(list []int, n int) bool {
	for _, v := range list {
		if v == n {
			return true
		}
	}
	return false
}

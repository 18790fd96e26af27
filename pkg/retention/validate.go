package retention

import (
	"errors"
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"
)

// Bounds of a policy's lists, strings and numbers. The custom resource's schema has the same.
const (
	MaxSchedules      = 16
	MaxCron           = 128
	MaxName           = 63
	MaxZone           = 64
	MaxLabels         = 32
	MaxClasses        = 32
	MaxLabelKey       = 317
	MaxLabelValue     = 63
	MaxObjectName     = 253
	MaxCount          = 10000
	MaxJitter         = Duration(24 * time.Hour)
	MaxDuration       = Duration(100 * 366 * 24 * time.Hour)
	MaxDeadline       = 30 * 24 * 3600
	MaxConcurrent     = 1000
	DefaultConcurrent = 20
	DefaultFailed     = 3
	DefaultMinKeep    = 1
)

// The errors of a policy. FieldErrors are all of these.
var (
	// ErrInvalid: the field's value is wrong by itself or beside another's.
	ErrInvalid = errors.New("invalid policy")
)

// FieldError says what is wrong with a field. It is an ErrInvalid.
type FieldError struct {
	Path   string // such as schedules[0].cron
	Detail string // what is wrong and what would be right
}

func (e FieldError) Error() string { return e.Path + ": " + e.Detail }

// Unwrap makes it an ErrInvalid.
func (e FieldError) Unwrap() error { return ErrInvalid }

// FieldErrors are all that is wrong with a policy. Compare them with nil before they become an error: a nil list in an error is not nil.
type FieldErrors []FieldError

func (e FieldErrors) Error() string {
	texts := make([]string, len(e))
	for i, f := range e {
		texts[i] = f.Error()
	}
	return strings.Join(texts, "; ")
}

// Unwrap makes them ErrInvalid, and reachable one by one.
func (e FieldErrors) Unwrap() []error {
	all := make([]error, len(e))
	for i, f := range e {
		all[i] = f
	}
	return all
}

// Under says whether an error is of that field or one below it.
func (e FieldErrors) Under(path string) bool {
	return slices.ContainsFunc(e, func(f FieldError) bool {
		rest, ok := strings.CutPrefix(f.Path, path)
		return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
	})
}

// checker collects errors.
type checker struct{ errs FieldErrors }

func (c *checker) addf(path, format string, args ...any) {
	c.errs = append(c.errs, FieldError{Path: path, Detail: fmt.Sprintf(format, args...)})
}

func (c *checker) between(path string, n, low, high int) {
	if n < low || n > high {
		c.addf(path, "is %d; it must be %d to %d", n, low, high)
	}
}

func (c *checker) duration(path string, d, high Duration) {
	switch {
	case d < 0:
		c.addf(path, "is %s; it must not be negative", d)
	case d > high:
		c.addf(path, "is %s; it must be %s at most", d, high)
	case time.Duration(d)%time.Second != 0:
		c.addf(path, "is %s; it must be whole seconds", d)
	}
}

func oneOf[T ~string](c *checker, path string, value T, known ...T) {
	if value != "" && !slices.Contains(known, value) {
		c.addf(path, "is %q; known are %q", short(string(value)), known)
	}
}

func (c *checker) zone(path, name string) *time.Location {
	if len(name) > MaxZone {
		c.addf(path, "is longer than %d characters", MaxZone)
		return nil
	}
	if name == "Local" { // it would mean whatever machine the planner runs on
		c.addf(path, `is "Local"; name a zone, such as Europe/Berlin`)
		return nil
	}
	zone, err := time.LoadLocation(name)
	if err != nil {
		c.addf(path, "is %q, which is no known time zone; zones are named as in Europe/Berlin", name)
		return nil
	}
	return zone
}

var (
	dnsLabel   = regexp.MustCompile(`^[a-z0-9]([-a-z0-9]*[a-z0-9])?$`)
	objectName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)
	labelName  = regexp.MustCompile(`^([a-z0-9]([-a-z0-9.]*[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$`)
	labelValue = regexp.MustCompile(`^([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?$`)
)

func (c *checker) labels(path string, labels map[string]string) {
	if len(labels) > MaxLabels {
		c.addf(path, "has %d labels; %d at most", len(labels), MaxLabels)
		return
	}
	for _, k := range slices.Sorted(maps.Keys(labels)) {
		at := path + "." + short(k)
		if len(k) > MaxLabelKey || !labelName.MatchString(k) {
			c.addf(at, "is no label's name")
		}
		if v := labels[k]; len(v) > MaxLabelValue || !labelValue.MatchString(v) {
			c.addf(at, "is %q, which is no label's value", short(v))
		}
	}
}

// short keeps a message short whatever it quotes.
func short(s string) string {
	if len(s) > 64 {
		return s[:64] + "…"
	}
	return s
}

// Validate says all that is wrong with a policy; nil if nothing.
func (p *Policy) Validate() FieldErrors {
	_, errs := New(*p)
	return errs
}

func (c *checker) policy(p *Policy) {
	sel := p.Selector
	c.labels("selector.matchLabels", sel.MatchLabels)
	if len(sel.StorageClassNames) > MaxClasses {
		c.addf("selector.storageClassNames", "has %d names; %d at most", len(sel.StorageClassNames), MaxClasses)
	}
	for i, name := range sel.StorageClassNames[:min(len(sel.StorageClassNames), MaxClasses)] {
		if len(name) > MaxObjectName || !objectName.MatchString(name) {
			c.addf(fmt.Sprintf("selector.storageClassNames[%d]", i), "is %q, which is no StorageClass's name", short(name))
		}
	}
	empty := len(sel.MatchLabels) == 0 && len(sel.StorageClassNames) == 0
	if empty && !sel.MatchAll {
		c.addf("selector", "is empty; to mean every PVC, set matchAll: true")
	}
	if !empty && sel.MatchAll {
		c.addf("selector.matchAll", "is set beside other fields; an every-PVC selector has no other")
	}
	c.template(&p.Template)
	c.between("maxConcurrent", or(p.MaxConcurrent, DefaultConcurrent), 1, MaxConcurrent)
	oneOf(c, "adopt", p.Adopt, AdoptNone, AdoptByName)
	oneOf(c, "deletionPolicy", p.DeletionPolicy, DeletionOrphan, DeletionDelete)
}

func (c *checker) template(t *Template) {
	c.labels("template.labels", t.Labels)
	if n := t.VolumeSnapshotClassName; n != "" && (len(n) > MaxObjectName || !objectName.MatchString(n)) {
		c.addf("template.volumeSnapshotClassName", "is %q, which is no class's name", short(n))
	}
	if t.Group != nil && (len(t.Group.ByLabel) > MaxLabelKey || !labelName.MatchString(t.Group.ByLabel)) {
		c.addf("template.group.byLabel", "is %q, which is no label's name", short(t.Group.ByLabel))
	}
	oneOf(c, "template.consistency", t.Consistency, ConsistencyCrash, ConsistencyFreeze)
}

// retention checks a retention; own says that it is a schedule's.
func (c *checker) retention(path string, r *Retention, own bool) {
	for _, n := range []struct {
		name  string
		count int
	}{{"keepLast", r.KeepLast}, {"hourly", r.Hourly}, {"daily", r.Daily}, {"weekly", r.Weekly}, {"monthly", r.Monthly}, {"yearly", r.Yearly},
		{"maxCount", r.MaxCount}, {"failedHistoryLimit", or(r.FailedHistoryLimit, DefaultFailed)}} {
		c.between(path+"."+n.name, n.count, 0, MaxCount)
	}
	c.duration(path+".within", r.Within, MaxDuration)
	c.duration(path+".maxAge", r.MaxAge, MaxDuration)
	minKeep := or(r.MinKeep, DefaultMinKeep)
	c.between(path+".minKeep", minKeep, 1, MaxCount)
	if r.MaxCount > 0 && r.MaxCount < minKeep {
		c.addf(path+".maxCount", "is %d, below minKeep, which is %d", r.MaxCount, minKeep)
	}
	if r.MaxAge > 0 && r.Within > r.MaxAge {
		c.addf(path+".within", "is %s, above maxAge, which is %s and would prune what this keeps", r.Within, r.MaxAge)
	}
	if own && r.PoolPressure != nil {
		c.addf(path+".poolPressure", "is for the policy's retention only: the pool is one for all schedules")
	}
	if own && r.AfterSourceDeleted != nil {
		c.addf(path+".afterSourceDeleted", "is for the policy's retention only: the source is one for all schedules")
	}
	if pp := r.PoolPressure; pp != nil {
		c.between(path+".poolPressure.abovePercent", pp.AbovePercent, 1, 99)
		c.between(path+".poolPressure.untilPercent", pp.UntilPercent, 1, 99)
		c.duration(path+".poolPressure.minAge", pp.MinAge, MaxDuration)
		if pp.UntilPercent >= pp.AbovePercent {
			c.addf(path+".poolPressure.untilPercent", "is %d, not below abovePercent, which is %d", pp.UntilPercent, pp.AbovePercent)
		}
	}
	if a := r.AfterSourceDeleted; a != nil {
		c.between(path+".afterSourceDeleted.keepLast", a.KeepLast, 0, MaxCount)
		c.duration(path+".afterSourceDeleted.maxAge", a.MaxAge, MaxDuration)
		if a.KeepLast == 0 && a.MaxAge == 0 {
			c.addf(path+".afterSourceDeleted", "is empty; give keepLast or maxAge, or leave it out to keep to the other rules")
		}
	}
}

// empty says that a retention has no rule that could prune.
func (r *Retention) empty() bool {
	return r == nil || !r.keeps() && r.MaxAge == 0 && r.MaxCount == 0 && r.PoolPressure == nil &&
		r.AfterSourceDeleted == nil && r.FailedHistoryLimit == nil
}

// keeps says that it has a keep rule.
func (r *Retention) keeps() bool {
	return r.KeepLast > 0 || r.Hourly > 0 || r.Daily > 0 || r.Weekly > 0 || r.Monthly > 0 || r.Yearly > 0 || r.Within > 0
}

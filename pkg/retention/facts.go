package retention

import (
	"fmt"
	"slices"
	"strings"
	"time"
)

// Facts are what the object of a snapshot says: a VolumeSnapshot or a VolumeGroupSnapshot, from the API or from a file. Snapshot is the one place
// that says what they mean to the planner.
type Facts struct {
	Namespace, Name     string
	IsGroup             bool
	Labels, Annotations map[string]string
	Created             time.Time // of the object
	Deleting            bool
	// Groups are the VolumeGroupSnapshots that own it.
	Groups []string
	// Ready, CutAt and Error are its status: readyToUse, creationTime, error; Error is nil where there is none.
	Ready bool
	CutAt time.Time
	Error *string
	// Making says that its content has the being-created annotation.
	Making bool
	// UsedBy names what uses it, besides its groups.
	UsedBy []string
	// Source is the key of what it is of, where the object does not say (AnnotationSource).
	Source string
	Frees  *int64
}

// FactsKey is the key of a snapshot: a VolumeSnapshot and a VolumeGroupSnapshot may have the same name.
func FactsKey(namespace, name string, group bool) string {
	if group {
		return "group " + namespace + "/" + name
	}
	return namespace + "/" + name
}

// Snapshot is what the planner makes of the facts, and the nominal times that the snapshot was taken for. An error says that Rowan's own annotation
// cannot be read (somebody changed it); then nobody can say what the snapshot is for.
func (f *Facts) Snapshot() (Snapshot, map[string]time.Time, error) {
	s := Snapshot{
		Key: FactsKey(f.Namespace, f.Name, f.IsGroup), Policy: f.Labels[LabelPolicy], PolicyName: f.Annotations[AnnotationPolicy],
		Source: f.Source, CreatedAt: f.CutAt, RequestedAt: f.Created, Ready: f.Ready && !f.CutAt.IsZero(), Making: f.Making,
		InUse: f.UsedBy, Deleting: f.Deleting, Frees: f.Frees,
	}
	if given := f.Annotations[AnnotationSource]; given != "" {
		s.Source = given
	}
	if f.Error != nil {
		s.Error = *f.Error
		if s.Error == "" {
			s.Error = "no message"
		}
	}
	if why, held := f.Annotations[AnnotationHold]; held {
		s.Hold = why
		if strings.TrimSpace(why) == "" {
			s.Hold = "held"
		}
	}
	for _, g := range f.Groups {
		s.InUse = append(slices.Clip(s.InUse), "VolumeGroupSnapshot "+g)
	}
	runs, err := ParseRuns(f.Annotations[AnnotationSchedules])
	if err != nil {
		return s, nil, fmt.Errorf("annotation %s: %w", AnnotationSchedules, err)
	}
	for name, at := range runs {
		s.Schedules = append(s.Schedules, name)
		if at.After(s.DueAt) {
			s.DueAt = at
		}
	}
	slices.Sort(s.Schedules)
	return s, runs, nil
}

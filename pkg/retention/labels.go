package retention

// The labels and annotations of the snapshots that policies take, and of those that people want kept.
const (
	// LabelPolicy has the UID of the policy that a snapshot is managed by.
	LabelPolicy = "rowan.storage/policy-uid"
	// AnnotationPolicy has that policy's kind, namespace and name: what adopt: ByName compares.
	AnnotationPolicy = "rowan.storage/policy"
	// AnnotationSource has the key of the source: the PVC's UID, or the group's.
	AnnotationSource = "rowan.storage/source"
	// AnnotationSchedules has the schedules that a snapshot was taken for, each with its nominal time: see RunsText.
	AnnotationSchedules = "rowan.storage/schedules"
	// AnnotationHold keeps a snapshot as long as it is there. Its value says why.
	AnnotationHold = "rowan.storage/hold"
)

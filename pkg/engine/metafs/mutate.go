package metafs

// mutation names a rule that a test breaks, to see that the power cuts find it out.
type mutation string

const (
	mutateHeader    mutation = "a log's header is not made durable before its records"
	mutateSlotName  mutation = "a slot is used before its name is durable"
	mutateUnsettled mutation = "a slot that a dead process left is used before its name is durable"
	mutateBlind     mutation = "the headers are not looked at on open"
)

package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"time"
)

// DriverName is the name of the CSI driver: the provisioner of our storage classes, and what CSINode lists on nodes that run our node plugin.
const DriverName = "csi.rowan.storage"

// How the agents say that they live. Each node's agent keeps a coordination/v1 Lease in the namespace of the release and renews it.
const (
	// AgentRenewal is how often an agent renews its lease.
	AgentRenewal = 10 * time.Second
	// AgentSilence is after which time without a renewal an agent counts as away.
	AgentSilence = 40 * time.Second
	// ForeignPools is an annotation of the agent's lease: the UUIDs, separated by commas, of pools whose members the agent found on its node though
	// no Pool object of its node has that status.uuid. An agent may not write objects of other nodes; rowan-controller reads it here and moves them.
	ForeignPools = "rowan.storage/foreign-pools"
	// PoolUsageAnnotation of the agent's lease tells how full its pools are: see PoolUsage. The lease is renewed anyway, so that the figures are as fresh
	// as it is and cost no write; status is for transitions.
	PoolUsageAnnotation = "rowan.storage/pool-usage"
)

// PoolUsage is how full a pool is: bytes that are used or reserved, of how many.
type PoolUsage struct {
	Pool       string
	Used, Size int64
}

// Percent of the pool that is used.
func (u PoolUsage) Percent() float64 {
	if u.Size <= 0 {
		return 0
	}
	return 100 * float64(u.Used) / float64(u.Size)
}

// PoolUsageText writes usages as the annotation has them: POOL=USED/SIZE, separated by commas.
func PoolUsageText(list []PoolUsage) string {
	parts := make([]string, len(list))
	for i, u := range list {
		parts[i] = fmt.Sprintf("%s=%d/%d", u.Pool, u.Used, u.Size)
	}
	return strings.Join(parts, ",")
}

// ParsePoolUsage reads PoolUsageText, and passes over what it cannot read: another version may have written it.
func ParsePoolUsage(text string) []PoolUsage {
	var list []PoolUsage
	for part := range strings.SplitSeq(text, ",") {
		name, rest, ok := strings.Cut(part, "=")
		used, size, both := strings.Cut(rest, "/")
		u, uerr := strconv.ParseInt(used, 10, 64)
		n, serr := strconv.ParseInt(size, 10, 64)
		if ok && both && name != "" && uerr == nil && serr == nil && u >= 0 && n > 0 {
			list = append(list, PoolUsage{name, u, n})
		}
	}
	return list
}

const (
	agentLeasePrefix = "rowan-agent-"
	maxObjectName    = 253
)

// AgentLease is the name of the lease of that node's agent: rowan-agent-NODE, shortened with a hash where that is no name of an object any more.
func AgentLease(node string) string {
	name := agentLeasePrefix + node
	if len(name) <= maxObjectName {
		return name
	}
	sum := sha256.Sum256([]byte(node))
	hash := hex.EncodeToString(sum[:4])
	return name[:maxObjectName-1-len(hash)] + "-" + hash
}

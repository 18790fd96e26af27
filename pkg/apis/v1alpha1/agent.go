package v1alpha1

import (
	"crypto/sha256"
	"encoding/hex"
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
)

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

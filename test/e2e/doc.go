// Package e2e has the flows that Rowan promises on a cluster: PVCs, VolumeSnapshots, restores and clones as users write them, with real data hashed in
// pods, while one of Rowan's processes is killed. `make e2e` makes a cluster for them; they run on any other with
//
//	go test ./test/e2e -args -kubeconfig FILE [-node-exec 'docker exec {node}'] [-seed N]
//
// Flows run side by side, each in its own namespace. Without -kubeconfig all skip. What disturbs a whole node or the cluster (TestDisrupt…) runs alone,
// before the others.
package e2e

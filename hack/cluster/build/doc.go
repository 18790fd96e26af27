// Package build makes what the local cluster runs: Kubernetes, containerd, etcd, the CSI side-cars, Helm and CoreDNS from their Go modules, and
// images of those that run in pods, because there is no registry to pull from.
//
// Contract: everything is in one folder whose name holds a hash of all versions, so a change of one never mixes with the old. Each file appears in
// place when it is whole: a Build that was interrupted goes on where it was, and one that is complete does nothing. Two at once: the second waits.
//
// Limits: it needs a Go tool chain, the module proxy (first time only), ldd and busybox-static. Cold, on two cores, it takes about 25 minutes; while
// Go's build cache is warm, two.
package build

// Package controllers tests rowan-controller's controllers against a real API server (etcd and kube-apiserver, without nodes), with the rights that
// the chart gives them. It has tests only; they are skipped where the programs are not built (go run ./hack/cluster build).
package controllers

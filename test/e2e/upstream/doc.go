// Package upstream says how Rowan stands with Kubernetes' own storage tests: manifest.yaml is what the driver declares, skips.txt which specs are
// left out and why, passes.txt how many passed. Package suite is the binary with the tests; hack/upstream of the main module builds and runs it.
//
// A spec of what is declared passes, or is in skips.txt; there is no third way.
package upstream

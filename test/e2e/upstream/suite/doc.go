// Package suite is a test binary with Kubernetes' external storage suite and nothing else of its end-to-end tests: `go test -c`, then run by ginkgo.
//
// Beside the flags of Kubernetes' own binary (-kubeconfig and so on) it has three, for a caller who runs specs in parts:
//
//	-upstream.dir      the folder of manifest.yaml and the files it names
//	-upstream.list     write the specs there are to this file, one JSON object a line, and run none
//	-upstream.run      run these specs only: a file of their names, one a line
//	-upstream.results  append the outcome of each spec to this file, one JSON object a line, as soon as it has ended
//	-upstream.failures folder for what failed specs wrote
//
// Contract: a line of results is written whole, in one call, by whichever of ginkgo's processes ran the spec, so that whoever reads the file after this
// binary was killed finds every spec that had ended. Specs that were not asked for are not in it.
//
// Limits: it must run in this module's Kubernetes version; the API server may be of another.
package suite

package build

import (
	_ "embed"
	"fmt"
	"path"
	"strings"
)

// Kubernetes is the version that is built unless another is asked for.
const Kubernetes = "v1.36.3"

// Versions of the rest of what a cluster is made of.
const (
	containerd  = "v2.2.1"
	etcd        = "v3.6.6"
	provisioner = "v6.3.0" // v6.4.0 requires a module version that was never published
	snapshotter = "v8.7.0"
	snapshotAPI = "v8.6.0"
	resizer     = "v2.3.0"
	helm        = "v3.19.0"
	coredns     = "v1.14.3"
)

//go:embed _hyperkube/main.go
var hyperkubeSource []byte

//go:embed _coredns/main.go
var corednsSource []byte

//go:embed nodeinit/main.go
var nodeinitSource []byte

// unit is a throw-away module that one or several programs are built from.
type unit struct {
	module, version string // what it requires; "": the standard library alone
	source          []byte // a main package of its own, built under the unit's name
	name            string
	packages        []string // main packages, below module; "": the module itself
	ldflags         string
	links           []string          // names by which the first program is called, too
	rename          map[string]string // where a program is not to be called as its package's folder
}

const versionPackage = "k8s.io/component-base/version"

// kubernetes is the unit of a version of Kubernetes itself.
func kubernetes(version string) unit {
	major, rest, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ := strings.Cut(rest, ".")
	return unit{name: "hyperkube", module: "k8s.io/kubernetes", version: version, source: hyperkubeSource,
		packages: []string{"cmd/kubectl", "test/images/agnhost"},
		ldflags:  fmt.Sprintf("-X %[1]s.gitVersion=%[2]s -X %[1]s.gitMajor=%[3]s -X %[1]s.gitMinor=%[4]s", versionPackage, version, major, minor),
		links:    []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "kubelet"}}
}

// others are the units beside Kubernetes.
var others = []unit{
	{name: "nodeinit", source: nodeinitSource},
	{name: "etcd", module: "go.etcd.io/etcd/server/v3", version: etcd, packages: []string{""}, rename: map[string]string{"v3": "etcd"}},
	{name: "containerd", module: "github.com/containerd/containerd/v2", version: containerd,
		packages: []string{"cmd/containerd", "cmd/containerd-shim-runc-v2", "cmd/ctr"},
		ldflags:  "-X github.com/containerd/containerd/v2/version.Version=" + containerd},
	{name: "helm", module: "helm.sh/helm/v3", version: helm, packages: []string{"cmd/helm"},
		ldflags: "-X helm.sh/helm/v3/internal/version.version=" + helm},
	{name: "provisioner", module: "github.com/kubernetes-csi/external-provisioner/v6", version: provisioner, packages: []string{"cmd/csi-provisioner"},
		ldflags: "-X main.version=" + provisioner},
	{name: "snapshotter", module: "github.com/kubernetes-csi/external-snapshotter/v8", version: snapshotter,
		packages: []string{"cmd/csi-snapshotter", "cmd/snapshot-controller"}, ldflags: "-X main.version=" + snapshotter},
	{name: "resizer", module: "github.com/kubernetes-csi/external-resizer/v2", version: resizer, packages: []string{"cmd/csi-resizer"},
		ldflags: "-X main.version=" + resizer},
	{name: "coredns", module: "github.com/coredns/coredns", version: coredns, source: corednsSource},
}

// program is one file that a unit makes.
type program struct {
	name string // the file's
	path string // the package's, as go build takes it
}

func (u unit) programs() (list []program) {
	if u.source != nil {
		list = append(list, program{u.name, "./" + u.name})
	}
	for _, p := range u.packages {
		full := path.Join(u.module, p)
		name := path.Base(full)
		if other, ok := u.rename[name]; ok {
			name = other
		}
		list = append(list, program{name, full})
	}
	return list
}

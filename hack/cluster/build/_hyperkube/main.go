// Command hyperkube is the servers of Kubernetes in one program, told apart by the name it is called by. They share nearly all their code, so that all
// are linked in the time of one, and take the space of one.
package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	_ "time/tzdata" // CronJobs with a time zone

	"github.com/spf13/cobra"
	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	apiserver "k8s.io/kubernetes/cmd/kube-apiserver/app"
	controllers "k8s.io/kubernetes/cmd/kube-controller-manager/app"
	proxy "k8s.io/kubernetes/cmd/kube-proxy/app"
	scheduler "k8s.io/kubernetes/cmd/kube-scheduler/app"
	kubelet "k8s.io/kubernetes/cmd/kubelet/app"
)

func main() {
	servers := map[string]func() *cobra.Command{
		"kube-apiserver":          apiserver.NewAPIServerCommand,
		"kube-controller-manager": controllers.NewControllerManagerCommand,
		"kube-scheduler":          func() *cobra.Command { return scheduler.NewSchedulerCommand() },
		"kube-proxy":              proxy.NewProxyCommand,
		"kubelet":                 newKubelet,
	}
	name := filepath.Base(os.Args[0])
	server, ok := servers[name]
	if !ok {
		fmt.Fprintf(os.Stderr, "hyperkube: called as %s; call it by the name of one of its servers (kubelet, kube-apiserver, ...)\n", name)
		os.Exit(2)
	}
	os.Exit(cli.Run(server()))
}

// newKubelet is the kubelet's command, whose function takes a context in newer versions.
func newKubelet() *cobra.Command {
	switch make := any(kubelet.NewKubeletCommand).(type) {
	case func(context.Context) *cobra.Command:
		return make(context.Background())
	case func() *cobra.Command:
		return make()
	default:
		panic(fmt.Sprintf("this version makes its kubelet by a %T, which is not known here", make))
	}
}

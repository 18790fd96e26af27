package kube

// Values between @ are filled in by writeConfigs.

// containerd's folders are its defaults: they are the node's own. Without CAP_SYS_RESOURCE (a container of some kinds) a sandbox cannot lower its
// oom_score_adj and dies, hence restrict_oom_score_adj. AppArmor's profiles are the machine's, and would stay. The folder of its plugin opt would be made in the machine's /opt.
const containerdConfig = `version = 3
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = ["/usr/lib/cni", "/opt/cni/bin"]
  conf_dir = "@CNI@"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = "@PAUSE@"
[plugins.'io.containerd.internal.v1.opt']
  path = "/var/lib/containerd/opt"
`

// ptp, not bridge: every packet is routed, so that a pod reaches a service whose pod is its neighbour without br_netfilter.
const cniConfig = `{"cniVersion": "0.4.0", "name": "pods", "plugins": [
  {"type": "ptp", "ipMasq": false,
   "ipam": {"type": "host-local", "dataDir": "/var/lib/cni/networks", "ranges": [[{"subnet": "@PODS@"}]], "routes": [{"dst": "0.0.0.0/0"}]}},
  {"type": "portmap", "capabilities": {"portMappings": true}}
]}
`

// The kubelet's folders of plug-ins and static pods would be made in the machine's /usr and /etc. Images are never collected: they could not be
// pulled again. failCgroupV1: machines with cgroup v1 do. crashLoopBackOff: tests kill processes again and again; with five minutes as the longest wait
// they would wait for the kubelet most of the time, and see nothing else. (The feature is there since 1.32, and on since 1.35.)
const kubeletConfig = `{
  "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
  "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}, "x509": {"clientCAFile": "@CA@"}},
  "authorization": {"mode": "Webhook"},
  "cgroupDriver": "cgroupfs", "cgroupRoot": "@CGROUP@", "failCgroupV1": false,
  "failSwapOn": false,
  "containerRuntimeEndpoint": "unix:///run/containerd/containerd.sock",
  "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
  "imageGCHighThresholdPercent": 100,
  "volumePluginDir": "@KUBELET@/volume-plugins",
  "resolvConf": "", "clusterDNS": ["@DNS@"], "clusterDomain": "cluster.local",
  "maxPods": 240,
  "featureGates": {"KubeletCrashLoopBackOffMax": true}, "crashLoopBackOff": {"maxContainerRestartPeriod": "10s"},
  "tlsCertFile": "@CRT@", "tlsPrivateKeyFile": "@KEY@"
}
`

// A network namespace may not set the size of the conntrack table.
const proxyConfig = `{
  "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
  "clientConnection": {"kubeconfig": "@KUBECONFIG@"},
  "mode": "iptables", "clusterCIDR": "10.244.0.0/16",
  "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"}
}
`

// Package kube runs a real Kubernetes on this machine: a control plane and several nodes, from the programs of package build.
//
// A node is a set of namespaces (mount, network, pid, uts, ipc) whose first process is nodeinit. /run, /var/lib and /var/log are its own. The control
// plane (number 0) is another such set, and the switch that the nodes are plugged into; the machine itself is plugged into it by one link.
//
// Contract: Up returns when every node is Ready and what was asked for runs. Down ends everything that was made below the cluster's folder and
// leaves nothing, in whatever state Up, a test or a Down before it stopped; it finds what there is by looking at the machine, not in Up's
// notes. Several clusters may run at once, in different folders; each takes another network (198.18.N.0/24).
//
// Limits: the nodes share the machine's kernel and what belongs to it as a whole: clock, boot id, /dev and its loop devices, kernel settings, disk
// and memory. A node that is stopped loses its processes, mounts, memory file systems and loop devices, as if its power were cut; what it wrote to
// files stays, and so do the engine's rings (RingsKept says why). There is no way out of the network: images are loaded, never pulled. It needs
// root, and the tools that hack/setup.sh cluster installs.
package kube

package kube

import (
	"context"
	"path/filepath"
)

// startControlPlane starts etcd and the servers, and returns when the API server answers. etcd never waits for the disk: it would share it with the
// pools, and a cluster's state is not worth more than the cluster.
func (c *Cluster) startControlPlane(ctx context.Context) error {
	const etcd = "http://127.0.0.1:2379"
	err := c.daemon(ctx, 0, c.cache.Program("etcd"), "--data-dir", c.path("etcd"), "--unsafe-no-fsync", "--listen-client-urls", etcd,
		"--advertise-client-urls", etcd, "--listen-peer-urls", "http://127.0.0.1:2380")
	if err != nil {
		return err
	}
	err = c.daemon(ctx, 0, c.cache.Program("kube-apiserver"),
		"--etcd-servers="+etcd,
		"--bind-address="+c.address(0), "--advertise-address="+c.address(0), "--secure-port=6443",
		"--tls-cert-file="+c.pki("apiserver.crt"), "--tls-private-key-file="+c.pki("apiserver.key"),
		"--client-ca-file="+c.pki("ca.crt"),
		"--service-account-key-file="+c.pki("tokens.key"), "--service-account-signing-key-file="+c.pki("tokens.key"),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-cluster-ip-range="+services,
		"--authorization-mode=Node,RBAC", "--enable-admission-plugins=NodeRestriction",
		"--allow-privileged",
		"--kubelet-client-certificate="+c.pki("admin.crt"), "--kubelet-client-key="+c.pki("admin.key"),
		"--kubelet-certificate-authority="+c.pki("ca.crt"), "--kubelet-preferred-address-types=InternalIP",
		// Aggregated servers are called at their pods' addresses: no kube-proxy runs beside the API server.
		"--enable-aggregator-routing",
		"--requestheader-client-ca-file="+c.pki("front-proxy-ca.crt"), "--requestheader-allowed-names=front-proxy-client",
		"--requestheader-username-headers=X-Remote-User", "--requestheader-group-headers=X-Remote-Group",
		"--requestheader-extra-headers-prefix=X-Remote-Extra-",
		"--proxy-client-cert-file="+c.pki("front-proxy.crt"), "--proxy-client-key-file="+c.pki("front-proxy.key"))
	if err != nil {
		return err
	}
	api, err := c.api()
	if err != nil {
		return err
	}
	err = c.await(ctx, 0, "kube-apiserver", "the API server is ready", func() error { return api.get(ctx, "/readyz", nil) })
	if err != nil {
		return err
	}
	err = c.daemon(ctx, 0, c.cache.Program("kube-controller-manager"),
		"--kubeconfig="+c.path("controller-manager.conf"),
		"--service-account-private-key-file="+c.pki("tokens.key"), "--root-ca-file="+c.pki("ca.crt"),
		"--cluster-signing-cert-file="+c.pki("ca.crt"), "--cluster-signing-key-file="+c.pki("ca.key"),
		"--authentication-kubeconfig="+c.path("controller-manager.conf"), "--authorization-kubeconfig="+c.path("controller-manager.conf"),
		"--use-service-account-credentials", "--leader-elect=false")
	if err != nil {
		return err
	}
	return c.daemon(ctx, 0, c.cache.Program("kube-scheduler"), "--kubeconfig="+c.path("scheduler.conf"),
		"--authentication-kubeconfig="+c.path("scheduler.conf"), "--authorization-kubeconfig="+c.path("scheduler.conf"), "--leader-elect=false")
}

// awaitDefaults waits for what the controllers make a moment after the API server is there and every pod needs.
func (c *Cluster) awaitDefaults(ctx context.Context) error {
	api, err := c.api()
	if err != nil {
		return err
	}
	for _, path := range []string{"/api/v1/namespaces/default/serviceaccounts/default", "/api/v1/namespaces/default/configmaps/kube-root-ca.crt"} {
		err := c.await(ctx, 0, "kube-controller-manager", filepath.Base(path)+" is there", func() error { return api.get(ctx, path, nil) })
		if err != nil {
			return err
		}
	}
	return nil
}

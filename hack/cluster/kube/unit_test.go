package kube

import (
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/rowan-csi/rowan/hack/cluster/build"
)

// unmade is a cluster that nothing was made of.
func unmade(t *testing.T) *Cluster {
	return &Cluster{dir: t.TempDir(), state: state{Nodes: 2, Index: 7}, cache: build.Cache{Dir: "/cache"}}
}

func certificate(t *testing.T, file string) *x509.Certificate {
	t.Helper()
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	return cert
}

func TestPKI(t *testing.T) {
	c := unmade(t)
	if err := c.makePKI(); err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AddCert(certificate(t, c.pki("ca.crt")))
	for _, host := range []string{"198.18.7.1", firstIP, "kubernetes.default.svc"} {
		if _, err := certificate(t, c.pki("apiserver.crt")).Verify(x509.VerifyOptions{Roots: roots, DNSName: host}); err != nil {
			t.Errorf("the API server as %s: %v", host, err)
		}
	}
	node := certificate(t, c.pki("node-2.crt"))
	if _, err := node.Verify(x509.VerifyOptions{Roots: roots, DNSName: "198.18.7.12"}); err != nil {
		t.Error(err)
	}
	if node.Subject.CommonName != "system:node:node-2" || !slices.Equal(node.Subject.Organization, []string{"system:nodes"}) {
		t.Errorf("node-2 is %v", node.Subject)
	}
	if _, err := certificate(t, c.pki("front-proxy.crt")).Verify(x509.VerifyOptions{Roots: roots}); err == nil {
		t.Error("clients' authority signed the front proxy: it could act as any user")
	}
	for _, name := range []string{"admin", "controller-manager", "scheduler", "proxy", "node-1", "node-2"} {
		text, err := os.ReadFile(c.path(name + ".conf"))
		if err != nil || !json.Valid(text) || !strings.Contains(string(text), "https://198.18.7.1:6443") {
			t.Errorf("kubeconfig of %s: %v\n%s", name, err, text)
		}
		if info, err := os.Stat(c.pki(name + ".key")); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("key of %s: %v, %v", name, info.Mode(), err)
		}
	}
}

func TestConfigsAreFilledIn(t *testing.T) {
	n := unmade(t).Node(2)
	if err := n.writeConfigs(); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kubelet.json", "proxy.json", "cni/10-pods.conflist", "containerd.toml"} {
		text, err := os.ReadFile(n.file(name))
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(text), "@") || !strings.HasSuffix(name, ".toml") && !json.Valid(text) {
			t.Errorf("%s:\n%s", name, text)
		}
	}
}

func TestReady(t *testing.T) {
	started := time.Date(2026, 1, 2, 3, 4, 5, 600e6, time.UTC)
	for name, c := range map[string]struct {
		renewed   time.Time
		status    string
		heartbeat time.Time
		want      string
	}{
		"ready":                 {started.Add(time.Second), "True", started.Truncate(time.Second), ""},
		"not ready":             {started.Add(time.Second), "False", started, "is not Ready"},
		"before its restart":    {started.Add(-time.Second), "True", started, "was last heard of"},
		"only the lease is new": {started.Add(time.Second), "True", started.Add(-time.Minute), "has not said so since"},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if strings.Contains(r.URL.Path, "leases") {
				fmt.Fprintf(w, `{"spec": {"renewTime": %q}}`, c.renewed.Format(time.RFC3339Nano))
				return
			}
			fmt.Fprintf(w, `{"status": {"conditions": [{"type": "DiskPressure", "status": "False"},
				{"type": "Ready", "status": %q, "lastHeartbeatTime": %q}]}}`, c.status, c.heartbeat.Format(time.RFC3339))
		}))
		err := (&api{server.Client(), server.URL}).ready(t.Context(), "node-1", started)
		if (c.want == "") != (err == nil) || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v; want %q", name, err, c.want)
		}
		server.Close()
	}
}

func TestUntil(t *testing.T) {
	asked := 0
	if err := until(t.Context(), "third", func() error {
		if asked++; asked < 3 {
			return errors.New("not yet")
		}
		return nil
	}); err != nil || asked != 3 {
		t.Errorf("%v after %d questions", err, asked)
	}
	if err := until(t.Context(), "ever", func() error { return finalError{ErrDown} }); !errors.Is(err, ErrDown) {
		t.Errorf("a final answer: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := until(ctx, "ever", func() error { return ErrLeft }); !errors.Is(err, ErrLeft) || !errors.Is(err, context.Canceled) {
		t.Errorf("a wait that was given up: %v", err)
	}
}

func TestProcesses(t *testing.T) {
	cmd := exec.Command("sh", "-c", "sleep 1000 & wait")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Wait() })
	var sleeper process
	err := until(t.Context(), "the child is there", func() error {
		list, err := processes()
		for _, p := range below(list, cmd.Process.Pid) {
			if p.name() == "sleep" {
				sleeper = p
				return err
			}
		}
		return errors.Join(errors.New("it is not"), err)
	})
	if err != nil {
		t.Fatal(err)
	}
	other := sleeper
	other.args = []string{"sleep", "7"} // its number was given to another meanwhile
	if err := other.signal(9); err != nil || sleeper.gone() {
		t.Errorf("another process was signalled: %v", err)
	}
	if err := sleeper.signal(9); err != nil {
		t.Fatal(err)
	}
	if err := until(t.Context(), "it ends", func() error {
		if !sleeper.gone() {
			return errors.New("it is there")
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}

func TestFoldersThatCannotBe(t *testing.T) {
	if err := Check(); err != nil {
		t.Skip(err)
	}
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for dir, want := range map[string]string{"/var/lib/cluster": "of which a node has its own", full: "not built yet"} {
		_, err := Up(t.Context(), Config{Dir: dir, Nodes: 1, Programs: build.Cache{Dir: t.TempDir()}})
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", dir, err, want)
		}
	}
	if _, err := Up(t.Context(), Config{Dir: full, Nodes: MaxNodes + 1}); err == nil {
		t.Error("too many nodes")
	}
	if _, err := Open(full); !errors.Is(err, ErrNone) {
		t.Errorf("open what is no cluster: %v", err)
	}
	if err := Down(t.Context(), full); err != nil {
		t.Errorf("take down what is no cluster: %v", err)
	}
	if _, err := os.Stat(filepath.Join(full, "mine")); err != nil {
		t.Errorf("a file of another: %v", err)
	}
}

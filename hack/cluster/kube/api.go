package kube

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"
)

// api asks the API server, as administrator. kubectl would take a tenth of a second of processor time for each question.
type api struct {
	client *http.Client
	server string
}

func (c *Cluster) api() (*api, error) {
	pair, err := tls.LoadX509KeyPair(c.pki("admin.crt"), c.pki("admin.key"))
	if err != nil {
		return nil, fmt.Errorf("read the administrator's certificate: %w", err)
	}
	text, err := os.ReadFile(c.pki("ca.crt"))
	if err != nil {
		return nil, err
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(text)
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: []tls.Certificate{pair}}, IdleConnTimeout: time.Second}
	return &api{&http.Client{Transport: transport, Timeout: 10 * time.Second}, c.server()}, nil
}

// get reads an answer into v, or only asks where v is nil.
func (a *api) get(ctx context.Context, path string, v any) (err error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.server+path, nil)
	if err != nil {
		return err
	}
	resp, err := a.client.Do(req)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, resp.Body.Close()) }()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		return fmt.Errorf("read %s: %w", path, err)
	}
	if resp.StatusCode != http.StatusOK {
		return fmt.Errorf("%s answers %s: %.500s", path, resp.Status, text)
	}
	if v == nil {
		return nil
	}
	return json.Unmarshal(text, v)
}

type node struct {
	Status struct {
		Conditions []struct {
			Type, Status, Reason, Message string
			LastHeartbeatTime             time.Time // in whole seconds
		}
	}
}

type lease struct{ Spec struct{ RenewTime time.Time } }

// ready asks whether a kubelet that was started at a given time has said that its node is Ready.
func (a *api) ready(ctx context.Context, name string, since time.Time) error {
	var l lease
	if err := a.get(ctx, "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases/"+name, &l); err != nil {
		return err
	}
	if !l.Spec.RenewTime.After(since) {
		return fmt.Errorf("the kubelet of %s, started at %v, was last heard of at %v", name, since, l.Spec.RenewTime)
	}
	var n node
	if err := a.get(ctx, "/api/v1/nodes/"+name, &n); err != nil {
		return err
	}
	for _, c := range n.Status.Conditions {
		switch {
		case c.Type != "Ready":
		case c.Status != "True":
			return fmt.Errorf("%s is not Ready: %s: %s", name, c.Reason, c.Message)
		case c.LastHeartbeatTime.Before(since.Truncate(time.Second)):
			return fmt.Errorf("%s was Ready before its kubelet was started again, and has not said so since", name)
		default:
			return nil
		}
	}
	return fmt.Errorf("%s has no condition Ready yet", name)
}

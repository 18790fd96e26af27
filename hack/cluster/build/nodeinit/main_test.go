package main

import "testing"

func TestKept(t *testing.T) {
	keep := []string{"/sys/", "/var/tmp/cluster/", "/root/.cache/rowan"}
	for at, want := range map[string]bool{
		"/":                        true,
		"/sys":                     true,
		"/sys/fs/cgroup/memory":    true,
		"/system":                  false,
		"/var":                     true, // the cluster is on it
		"/var/tmp":                 true,
		"/var/tmp/cluster":         true,
		"/var/tmp/cluster/rings":   true,
		"/var/tmp/cluster2":        false,
		"/var/lib":                 false,
		"/root":                    true,
		"/root/.cache/rowan":       true,
		"/root/.cache/rowan/under": false,
		"/mnt/disk":                false,
	} {
		if got := kept(at, keep); got != want {
			t.Errorf("kept(%s) = %v; want %v", at, got, want)
		}
	}
}

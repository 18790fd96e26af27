package kube

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// machineFile is what clusters of this machine share: a lock, and the kernel settings there were before the first of them. In /run: settings do not
// outlive a boot either.
const machineFile = "/run/rowan-clusters.json"

// raised are settings that several nodes on one kernel need: inotify is counted for all of a user's processes.
var raised = map[string]int{"fs/inotify/max_user_instances": 8192, "fs/inotify/max_user_watches": 1 << 20}

// written are settings that every kubelet sets for itself.
var written = []string{"vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys",
	"kernel/keys/root_maxbytes"}

// lockMachine keeps other Ups and Downs out, for a moment each.
func lockMachine(ctx context.Context) (unlock func(), err error) {
	for {
		f, err := os.OpenFile(machineFile, os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			return nil, fmt.Errorf("lock the clusters of this machine: %w", err)
		}
		err = until(ctx, "no other cluster comes up or goes down", func() error { return unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB) })
		if err != nil {
			return nil, errors.Join(err, f.Close())
		}
		ours, err1 := f.Stat()
		there, err2 := os.Stat(machineFile)
		if err1 == nil && err2 == nil && os.SameFile(ours, there) {
			return func() { _ = f.Close() }, nil
		}
		_ = f.Close() // the last cluster's Down removed it meanwhile
	}
}

func settingFile(name string) string { return filepath.Join("/proc/sys", name) }

// saveSettings notes the settings before the first cluster changes them, and raises what several nodes need. Under lockMachine.
func saveSettings() error {
	text, err := os.ReadFile(machineFile)
	if err != nil {
		return err
	}
	if len(text) == 0 {
		saved := map[string]string{}
		names := written
		for name := range raised {
			names = append(names, name)
		}
		for _, name := range names {
			value, err := os.ReadFile(settingFile(name))
			if err == nil {
				saved[name] = strings.TrimSpace(string(value))
			}
		}
		text, err := json.Marshal(saved)
		if err != nil {
			return err
		}
		if err := os.WriteFile(machineFile, text, 0o600); err != nil {
			return err
		}
	}
	for name, least := range raised {
		value, err := os.ReadFile(settingFile(name))
		if err != nil {
			return fmt.Errorf("read the kernel setting %s: %w", name, err)
		}
		if now, err := strconv.Atoi(strings.TrimSpace(string(value))); err == nil && now < least {
			if err := os.WriteFile(settingFile(name), []byte(strconv.Itoa(least)), 0o644); err != nil {
				return fmt.Errorf("raise the kernel setting %s to %d: %w", name, least, err)
			}
		}
	}
	return nil
}

// restoreSettings puts them back with the last cluster. Under lockMachine.
func restoreSettings(dir string) error {
	list, err := processes()
	if err != nil {
		return err
	}
	for _, p := range list {
		if p.isInit() && filepath.Dir(filepath.Dir(p.args[2])) != dir {
			return nil
		}
	}
	f, err := os.Open(machineFile)
	if err != nil {
		return err
	}
	defer f.Close()
	var saved map[string]string
	if err := json.NewDecoder(f).Decode(&saved); err != nil && !errors.Is(err, io.EOF) {
		return fmt.Errorf("read %s: %w", machineFile, err)
	}
	for name, value := range saved {
		now, err := os.ReadFile(settingFile(name))
		if err == nil && strings.TrimSpace(string(now)) != value {
			err = os.WriteFile(settingFile(name), []byte(value), 0o644)
		}
		if err != nil {
			return fmt.Errorf("put the kernel setting %s back to %s: %w", name, value, err)
		}
	}
	return os.Remove(machineFile)
}

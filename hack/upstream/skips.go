package main

import (
	"errors"
	"fmt"
	"os"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"
)

// How a rule of skips.txt applies.
const (
	leaveOut = "leave-out" // a spec whose name matches is not run
	skipped  = "skipped"   // the suite skips specs itself, with a message that matches

	// noSysResource is leaveOut on a machine whose processes cannot have CAP_SYS_RESOURCE, and nothing elsewhere.
	noSysResource = "no-sys-resource"
	// oneNode is leaveOut on a cluster of several nodes, and nothing on one of a single node.
	oneNode = "one-node"
)

// rule is a line of skips.txt: kind, pattern and why, parted by tabs.
type rule struct {
	kind    string
	pattern *regexp.Regexp
	why     string
	line    int
	used    int // specs it applied to
}

type rules []*rule

func readRules(file string) (rules, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("read the list of skips: %w", err)
	}
	list, err := parseRules(string(text))
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	return list, nil
}

func parseRules(text string) (list rules, err error) {
	number := 0
	for line := range strings.Lines(text) {
		number++
		line = strings.TrimRight(line, "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		r, problem := parseRule(line)
		if problem != nil {
			err = errors.Join(err, fmt.Errorf("line %d: %w", number, problem))
			continue
		}
		r.line = number
		list = append(list, r)
	}
	return list, err
}

func parseRule(line string) (*rule, error) {
	parts := strings.Split(line, "\t")
	if len(parts) != 3 || strings.TrimSpace(parts[2]) == "" {
		return nil, errors.New("write KIND, PATTERN and why, parted by one tab each")
	}
	if parts[0] != leaveOut && parts[0] != skipped && parts[0] != noSysResource && parts[0] != oneNode {
		return nil, fmt.Errorf("kind %q: write %s, %s, %s or %s", parts[0], leaveOut, skipped, noSysResource, oneNode)
	}
	pattern, err := regexp.Compile(parts[1])
	if err != nil {
		return nil, err
	}
	if pattern.MatchString("") {
		return nil, fmt.Errorf("pattern %q matches anything", parts[1])
	}
	return &rule{kind: parts[0], pattern: pattern, why: parts[2]}, nil
}

// settle makes rules of kind noSysResource what they are on a machine with or without the capability, and those of kind oneNode what they are on a cluster
// with or without other nodes.
func (list rules) settle(sysResource, single bool) (settled rules) {
	for _, r := range list {
		if r.kind == noSysResource && sysResource || r.kind == oneNode && single {
			continue
		}
		if r.kind == noSysResource || r.kind == oneNode {
			r.kind = leaveOut
		}
		settled = append(settled, r)
	}
	return settled
}

// canSysResource asks whether processes of this machine can have CAP_SYS_RESOURCE: containers of some kinds cannot, whatever their manifest says.
func canSysResource() (bool, error) {
	has, err := unix.PrctlRetInt(unix.PR_CAPBSET_READ, unix.CAP_SYS_RESOURCE, 0, 0, 0)
	if err != nil {
		return false, fmt.Errorf("ask for CAP_SYS_RESOURCE: %w", err)
	}
	return has == 1, nil
}

// find is the first rule of a kind that applies to a text, and counts its use.
func (list rules) find(kind, text string) *rule {
	for _, r := range list {
		if r.kind == kind && r.pattern.MatchString(text) {
			r.used++
			return r
		}
	}
	return nil
}

// unused are rules that applied to nothing: what they excused is no longer there, and the next who reads them would believe it.
func (list rules) unused() (left rules) {
	for _, r := range list {
		if r.used == 0 {
			left = append(left, r)
		}
	}
	return left
}

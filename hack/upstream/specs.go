package main

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
)

// ours tells the driver's specs from those that come with Kubernetes' test library (volumes of configMaps and the like).
const ours = "External Storage [Driver: csi.rowan.storage]"

// spec is a line of the binary's list.
type spec struct {
	Name   string   `json:"name"`
	Labels []string `json:"labels"`
	Serial bool     `json:"serial"`
}

// shard is one part of n; the zero value is all.
type shard struct{ i, n int }

// parseShard reads "i/n", with i from 1.
func parseShard(text string) (shard, error) {
	if text == "" {
		return shard{}, nil
	}
	first, second, found := strings.Cut(text, "/")
	i, err1 := strconv.Atoi(first)
	n, err2 := strconv.Atoi(second)
	if !found || err1 != nil || err2 != nil || i < 1 || i > n {
		return shard{}, fmt.Errorf("shard %q: write I/N, such as 1/3", text)
	}
	return shard{i, n}, nil
}

// plan is what there is to run.
type plan struct {
	all     []string // the driver's specs, sorted
	run     []string // those of this shard that no rule leaves out
	leftOut int      // of all
}

// makePlan leaves out what rules name, and takes every n-th of the rest: names that lie side by side test the same thing, and so take about as long.
func makePlan(specs []spec, list rules, part shard, only *regexp.Regexp) (plan, error) {
	var p plan
	for _, s := range specs {
		if strings.Contains(s.Name, ours) {
			p.all = append(p.all, s.Name)
		}
	}
	if len(p.all) == 0 {
		return p, fmt.Errorf("the suite has no spec of %q: does manifest.yaml name the driver?", ours)
	}
	slices.Sort(p.all)
	kept := 0
	for _, name := range p.all {
		if list.find(leaveOut, name) != nil {
			p.leftOut++
			continue
		}
		kept++
		if part.n > 0 && (kept-1)%part.n != part.i-1 || only != nil && !only.MatchString(name) {
			continue
		}
		p.run = append(p.run, name)
	}
	return p, nil
}

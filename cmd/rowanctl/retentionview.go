package main

import (
	"cmp"
	"fmt"
	"io"
	"time"

	"github.com/rowan-csi/rowan/pkg/retention"
)

// planView is a plan, printable.
type planView struct {
	Now       time.Time      `json:"now"`
	PolicyUID string         `json:"policyUID,omitempty"` // empty: all snapshots were taken to be the policy's
	Stay      int            `json:"stay"`
	Prune     int            `json:"prune"`
	Wait      int            `json:"wait"`
	Unmanaged int            `json:"unmanaged"`
	PassLimit int            `json:"passLimit"`
	Notices   []noticeView   `json:"notices"`
	Snapshots []decisionView `json:"snapshots"`

	names map[string]string
	zone  *time.Location
}

type noticeView struct {
	Type    string `json:"type"`
	Source  string `json:"source,omitempty"`
	Message string `json:"message"`
}

// decisionView is what becomes of a snapshot.
type decisionView struct {
	Name      string    `json:"name"`
	Source    string    `json:"source"`
	CreatedAt time.Time `json:"createdAt,omitzero"`
	Action    string    `json:"action"`
	Reason    string    `json:"reason"`
	Why       string    `json:"why"`
}

func viewPlan(p *retention.Plan, in *retention.Input, zone *time.Location, all bool) planView {
	v := planView{Now: in.Now.UTC(), PolicyUID: in.PolicyUID, Unmanaged: p.Unmanaged, PassLimit: p.Limit, Notices: []noticeView{},
		Snapshots: []decisionView{}, names: map[string]string{}, zone: zone}
	if all {
		v.PolicyUID = ""
	}
	for _, s := range in.Sources {
		v.names[s.Key] = s.Name
	}
	for _, n := range p.Notices {
		v.Notices = append(v.Notices, noticeView{string(n.Type), n.Source, n.Message})
	}
	for i := range p.Decisions {
		d := &p.Decisions[i]
		switch d.Action {
		case retention.Keep:
			v.Stay++
		case retention.Prune:
			v.Prune++
		case retention.Wait:
			v.Wait++
		}
		v.Snapshots = append(v.Snapshots, decisionView{Name: d.Snapshot.Key, Source: d.Snapshot.Source, CreatedAt: d.Snapshot.CreatedAt,
			Action: string(d.Action), Reason: string(d.Reason), Why: d.Text()})
	}
	return v
}

func (v planView) table(w io.Writer) error {
	rows := make([][]string, 0, len(v.Snapshots))
	for _, s := range v.Snapshots {
		taken := "-"
		if !s.CreatedAt.IsZero() {
			taken = s.CreatedAt.In(v.zone).Format("2006-01-02 15:04:05 -07:00")
		}
		rows = append(rows, []string{cmp.Or(v.names[s.Source], s.Source), s.Name, taken, s.Action, s.Reason, s.Why})
	}
	if err := writeRows(w, []string{"SOURCE", "SNAPSHOT", "TAKEN", "ACTION", "REASON", "WHY"}, rows); err != nil {
		return err
	}
	whose := ""
	if v.PolicyUID == "" {
		whose = " (no policy UID is known: all are taken to be the policy's)"
	}
	if _, err := fmt.Fprintf(w, "\n%d snapshots at %s: %d stay, %d go now, %d go later, %d are not the policy's%s\n", len(v.Snapshots),
		v.Now.In(v.zone).Format("2006-01-02 15:04:05 -07:00"), v.Stay, v.Prune, v.Wait, v.Unmanaged, whose); err != nil {
		return err
	}
	for _, n := range v.Notices {
		if _, err := fmt.Fprintf(w, "%s: %s\n", n.Type, n.Message); err != nil {
			return err
		}
	}
	return nil
}

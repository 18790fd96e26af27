package report_test

import (
	"bytes"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
	_ "time/tzdata"

	"github.com/rowan-csi/rowan/pkg/retention"
	"github.com/rowan-csi/rowan/pkg/retention/report"
)

var now = time.Date(2026, 11, 20, 9, 30, 0, 0, time.UTC)

// render draws sources of n snapshots each, an hour apart.
func render(t *testing.T, p retention.Policy, sources, n int, change func(*retention.Snapshot)) string {
	t.Helper()
	p.Selector.MatchAll = true
	rules, errs := retention.New(p)
	if errs != nil {
		t.Fatal(errs)
	}
	in := retention.Input{Now: now, PolicyUID: "p"}
	for s := range sources {
		for i := range n {
			snap := retention.Snapshot{Key: fmt.Sprintf("shop/s%d-%d", s, i), Source: fmt.Sprint("uid-", s), Policy: "p", Ready: true,
				CreatedAt: now.Add(-time.Duration(i) * time.Hour), Schedules: []string{"hourly"}}
			if change != nil {
				change(&snap)
			}
			in.Snapshots = append(in.Snapshots, snap)
		}
	}
	plan := rules.Plan(in)
	zone, err := time.LoadLocation("Europe/Berlin")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	if err := report.Render(&b, report.Input{Title: "Plan <of> & policy", Policy: "retention: {}", Now: now, Zone: zone, Plan: &plan,
		Names: map[string]string{"uid-0": "shop/db <b>"}}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

func TestPage(t *testing.T) {
	page := render(t, retention.Policy{TimeZone: "Europe/Berlin",
		Retention: &retention.Retention{KeepLast: 3, Hourly: 6, Daily: 2, Within: retention.Duration(2 * time.Hour)},
		Schedules: []retention.Schedule{{Name: "daily", Cron: "@daily", Retention: &retention.Retention{Monthly: 2}}}}, 1, 50,
		func(s *retention.Snapshot) {
			switch s.Key {
			case "shop/s0-30":
				s.Hold = "audit"
			case "shop/s0-31":
				s.Policy = "another"
			case "shop/s0-33":
				s.Schedules = []string{"daily"}
			}
		})
	for _, want := range []string{"Plan &lt;of&gt; &amp; policy", "shop/db &lt;b&gt;", ">keepLast 3<", ">hourly 6<",
		">daily 2<", ">within 2h<", ">daily: monthly 2<",
		"PruneBraked", "prefers-color-scheme: dark", "2026-11-20 10:30:00 &#43;01:00", "goes later", "audit", "retention: {}"} {
		if !strings.Contains(page, want) {
			t.Errorf("the page has no %q", want)
		}
	}
	if n := strings.Count(page, "<tr><td class=\"fix\">shop/s0-"); n != 50 {
		t.Errorf("%d snapshots in the table", n)
	}
}

// TestSelfContained: nothing is loaded from elsewhere, nothing is run, and what is drawn is well formed.
func TestSelfContained(t *testing.T) {
	page := render(t, retention.Policy{Retention: &retention.Retention{Hourly: 3}}, 3, 10, nil)
	if found := regexp.MustCompile(`(?i)https?://|<script|<link|<img|@import|url\(|src=|href=`).FindString(page); found != "" {
		t.Errorf("the page has %q", found)
	}
	for _, svg := range regexp.MustCompile(`(?s)<svg.*?</svg>`).FindAllString(page, -1) {
		d := xml.NewDecoder(strings.NewReader(svg))
		for {
			if _, err := d.Token(); errors.Is(err, io.EOF) {
				break
			} else if err != nil {
				t.Fatalf("%v in %s", err, svg)
			}
		}
	}
	for _, place := range regexp.MustCompile(`translate\((-?[0-9.]+) `).FindAllStringSubmatch(page, -1) {
		var x float64
		if _, err := fmt.Sscan(place[1], &x); err != nil || x < 0 || x > 1000 {
			t.Errorf("something is drawn at %s", place[1])
		}
	}
}

// TestOddPlans: nothing to draw, one snapshot, one without a time, one dated ahead, ages of centuries, and more sources than are drawn.
func TestOddPlans(t *testing.T) {
	p := retention.Policy{Retention: &retention.Retention{Yearly: 3}}
	if page := render(t, p, 0, 0, nil); strings.Contains(page, "<section class=\"card\">\n<div class=\"head\">") {
		t.Error("a source is drawn where there is none")
	}
	for _, change := range []func(*retention.Snapshot){
		nil,
		func(s *retention.Snapshot) { s.Ready, s.CreatedAt = false, time.Time{} },
		func(s *retention.Snapshot) { s.CreatedAt = now.AddDate(1, 0, 0) },
		func(s *retention.Snapshot) { s.CreatedAt = now.AddDate(-200, 0, 0) },
	} {
		if page := render(t, p, 1, 1, change); strings.Contains(page, "NaN") || strings.Contains(page, "Inf") {
			t.Error("a place that is no number")
		}
	}
	if page := render(t, p, report.MaxSources+7, 1, nil); !strings.Contains(page, "7 more sources are not drawn") {
		t.Error("what is left out is not said")
	}
}

package chart

import (
	"bufio"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	rbacv1 "k8s.io/api/rbac/v1"
	"sigs.k8s.io/yaml"
)

// TestRulesNameTheirUsers: above each rule, or above the first of several that belong together, stands who needs it.
func TestRulesNameTheirUsers(t *testing.T) {
	names, err := filepath.Glob(filepath.Join(chartDir, "templates", "*.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	rules := 0
	for _, name := range names {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		previous := ""
		for s := bufio.NewScanner(f); s.Scan(); {
			line := strings.TrimSpace(s.Text())
			if strings.HasPrefix(line, "- apiGroups: [") {
				rules++
				if previous == "rules:" {
					t.Errorf("%s: a first rule without a word on who needs it", name)
				}
			}
			if strings.HasPrefix(previous, "#") && strings.HasPrefix(line, "- apiGroups: [") && !strings.Contains(previous, ":") {
				t.Errorf("%s: %q does not say who needs it (WHO: WHAT FOR)", name, previous)
			}
			if line != "" {
				previous = line
			}
		}
	}
	if rules < 20 {
		t.Errorf("%d rules seen: the test does not see what it should", rules)
	}
}

// writes are all that an account may change, of the accounts for which least is most important.
var writes = map[string][]string{
	"rowan-node": {
		"/events create patch", "/nodes patch", "coordination.k8s.io/leases create update patch", "events.k8s.io/events create patch",
		"rowan.storage/localsnapshotgroups/status patch", "rowan.storage/localsnapshots/status patch", "rowan.storage/localvolumes/status patch",
		"rowan.storage/pools/status patch",
	},
	"rowan-setup": {
		"groupsnapshot.storage.k8s.io/volumegroupsnapshotclasses create patch", "rowan.storage/poolsets create patch",
		"snapshot.storage.k8s.io/volumesnapshotclasses create patch",
	},
	"rowan-uninstall-check": nil,
}

func TestLeastPrivilege(t *testing.T) {
	c := load(t)
	most := sets[len(sets)-1]
	r, err := Render(c, Options{Values: parse(t, most.values), APIs: most.apis})
	if err != nil {
		t.Fatal(err)
	}
	may := map[string][]string{}
	for _, d := range documents(r.Objects) {
		var role rbacv1.ClusterRole
		if err := yaml.Unmarshal([]byte(d), &role); err != nil || (role.Kind != "ClusterRole" && role.Kind != "Role") {
			continue
		}
		for _, rule := range role.Rules {
			all := slices.Concat(rule.APIGroups, rule.Resources, rule.Verbs)
			if slices.Contains(all, "*") {
				t.Errorf("%s has a rule with a *: %v", role.Name, rule)
			}
			if slices.ContainsFunc(all, func(word string) bool {
				return slices.Contains([]string{"secrets", "escalate", "bind", "impersonate"}, word)
			}) {
				t.Errorf("%s has a right that leads to others: %v", role.Name, rule)
			}
			may[role.Name] = append(may[role.Name], changes(rule)...)
		}
	}
	for name, want := range writes {
		got := may[name]
		slices.Sort(got)
		if !slices.Equal(got, want) {
			t.Errorf("%s may change\n%s\nnot\n%s", name, strings.Join(got, "\n"), strings.Join(want, "\n"))
		}
	}
	if len(may) < 6 {
		t.Errorf("only these have roles: %v", may)
	}
}

// changes lists what a rule lets people change.
func changes(rule rbacv1.PolicyRule) (found []string) {
	verbs := slices.DeleteFunc(slices.Clone(rule.Verbs), func(v string) bool { return v == "get" || v == "list" || v == "watch" })
	if len(verbs) == 0 {
		return nil
	}
	for _, group := range rule.APIGroups {
		for _, resource := range rule.Resources {
			found = append(found, group+"/"+resource+" "+strings.Join(verbs, " "))
		}
	}
	return found
}

package imports

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const module = "github.com/rowan-csi/rowan"

// rule says what the packages at and below a folder may import.
type rule struct {
	under  string   // folder, relative to the module
	exact  bool     // this folder only, not those below it
	except []string // folders below it that the rule leaves alone
	only   []string // when set: besides the standard library, nothing but these; tests also their own package and those below it
	never  []string // none of these
	code   bool     // tests may break the rule
	why    string
}

var (
	kubernetes = []string{"k8s.io", "sigs.k8s.io", "github.com/kubernetes-csi", "github.com/container-storage-interface"}
	grpc       = []string{"google.golang.org/grpc", "google.golang.org/protobuf"}
	prometheus = []string{"github.com/prometheus"}
	loggers    = []string{"log", "k8s.io/klog", "go.uber.org/zap", "github.com/go-logr", "github.com/sirupsen"}
	tests      = []string{"pgregory.net/rapid"}
)

// rules are read from the top; every rule whose folder holds a file applies to it. An import matches an entry that is its path or a folder above it;
// entries that start with "pkg/" or "cmd/" are this module's.
var rules = []rule{
	{under: "pkg/block", exact: true, only: tests, why: "block is the leaf that everything shares: the standard library alone"},
	{under: "pkg/block", only: join(tests, "pkg/block"), why: "block's helpers know block and nothing else"},
	{under: "pkg/engine/format", only: join(tests, "pkg/block", "pkg/engine/format"), why: "format is bytes on disk"},
	{under: "pkg/uring", only: join(tests, "golang.org/x/sys"), why: "uring speaks to the kernel; engine and attachers stand on it"},
	{under: "pkg/volume", exact: true, only: join(tests, "pkg/block"), why: "volume is the domain: the standard library and block"},
	{under: "pkg/retention", only: join(tests, "pkg/retention", "github.com/robfig/cron"),
		why: "retention is a pure planner: plain types, the standard library and a cron parser"},

	{under: "pkg/engine", never: join(kubernetes, prometheus, loggers),
		why: "the engine takes an observer; it knows no Kubernetes, metrics or logger"},
	{under: "pkg/engine", except: []string{"pkg/engine/rpc"}, never: grpc, why: "only engine/rpc speaks gRPC"},
	{under: "pkg/engine", except: []string{"pkg/engine/host", "pkg/engine/rpc"}, never: []string{"pkg/attach"},
		why: "the engine serves block devices and does not know who shows them; host is where the process joins the two"},
	{under: "pkg/engine", never: []string{"pkg/volume", "pkg/driver", "pkg/agent", "pkg/apis", "pkg/controller"},
		why: "the engine stands below all these; they use it, or do not know it"},

	{under: "pkg/attach", never: []string{"pkg/engine"}, why: "attach shows any block.Device and does not know the engine"},
	{under: "pkg/attach", never: []string{"pkg/volume", "pkg/driver", "pkg/agent", "pkg/apis", "pkg/controller"}, why: "attach stands below all these"},
	{under: "pkg/attach", never: join(kubernetes, prometheus, loggers),
		why: "libraries return errors; logs and metrics are made at the processes' edges"},

	{under: "pkg/driver", never: []string{"pkg/engine"}, code: true, why: "the driver speaks to volume.Service, whatever is behind it"},
	{under: "pkg/driver", never: []string{"pkg/controller"}, why: "driver and controllers meet in the custom resources only"},
	{under: "pkg/volume/cluster", never: []string{"pkg/engine", "pkg/attach", "pkg/driver", "pkg/agent", "pkg/controller"}, code: true,
		why: "the controller of a cluster meets the nodes in the custom resources only"},
	{under: "pkg/volume/reason", only: join(tests, "pkg/volume", "pkg/apis"), why: "agent and controller share the table, and nothing else through it"},
	{under: "pkg/controller", never: []string{"pkg/driver", "pkg/engine", "pkg/attach"},
		why: "controllers know the custom resources, not who carries them out"},
	{under: "pkg/apis", never: []string{"pkg/engine", "pkg/attach", "pkg/volume", "pkg/driver", "pkg/agent", "pkg/controller"},
		why: "apis is what the others meet in"},

	{under: "pkg", never: []string{"cmd"}, why: "cmd is wiring; what others need moves to pkg"},
	{under: "pkg", never: []string{"flag", "os/signal", "github.com/spf13"}, code: true, why: "flags and signals are cmd's alone"},
}

// calls are the functions, as package.name, that only cmd may use. (os.Environ is not among them: it hands the environment on to a program.)
var calls = []string{"os.Exit", "os.Getenv", "os.LookupEnv", "os.Args", "log.Fatal", "log.Fatalf", "log.Fatalln"}

func TestImports(t *testing.T) {
	files := 0
	eachFile(t, func(name string, file *ast.File) {
		files++
		for _, spec := range file.Imports {
			path, err := strconv.Unquote(spec.Path.Value)
			if err != nil {
				t.Fatalf("%s: import %s: %v", name, spec.Path.Value, err)
			}
			for _, r := range rules {
				if broken := r.breaks(name, path); broken != "" {
					t.Errorf("%s imports %q: %s\n\trule for %s: %s", name, path, broken, r.under, r.why)
				}
			}
		}
	})
	if files == 0 {
		t.Fatal("no Go file was read")
	}
}

func TestOnlyCommandsTouchTheProcess(t *testing.T) {
	eachFile(t, func(name string, file *ast.File) {
		if !strings.HasPrefix(name, "pkg/") || strings.HasSuffix(name, "_test.go") {
			return
		}
		ast.Inspect(file, func(n ast.Node) bool {
			sel, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if id, ok := sel.X.(*ast.Ident); ok && slices.Contains(calls, id.Name+"."+sel.Sel.Name) {
				t.Errorf("%s uses %s.%s: environment, arguments and exit are cmd's alone; take a parameter or return an error", name, id.Name,
					sel.Sel.Name)
			}
			return true
		})
	})
}

// TestRules breaks rules on purpose: a table that lets everything through would look green for ever.
func TestRules(t *testing.T) {
	for _, c := range []struct {
		file, path string
		broken     bool
	}{
		{"pkg/block/device.go", "io", false},
		{"pkg/block/device.go", "golang.org/x/sys/unix", true},
		{"pkg/block/device.go", module + "/pkg/engine", true},
		{"pkg/block/ram_test.go", module + "/pkg/block/blocktest", false},
		{"pkg/block/ram.go", module + "/pkg/block/blocktest", true},
		{"pkg/block/blocktest/suite.go", module + "/pkg/block", false},
		{"pkg/block/blocktest/suite.go", module + "/pkg/engine", true},
		{"pkg/engine/format/superblock.go", "hash/crc32", false},
		{"pkg/engine/format/superblock.go", "github.com/cockroachdb/pebble/v2", true},
		{"pkg/engine/pool.go", "github.com/cockroachdb/pebble/v2", false},
		{"pkg/engine/pool.go", "k8s.io/klog/v2", true},
		{"pkg/engine/pool.go", "log/slog", true},
		{"pkg/engine/pool.go", "google.golang.org/grpc", true},
		{"pkg/engine/rpc/server.go", "google.golang.org/grpc", false},
		{"pkg/engine/rpc/server.go", "k8s.io/klog/v2", true},
		{"pkg/engine/pool.go", module + "/pkg/attach", true},
		{"pkg/engine/host/attach.go", module + "/pkg/attach", false},
		{"pkg/engine/host/attach.go", module + "/pkg/driver", true},
		{"pkg/attach/attach.go", module + "/pkg/block", false},
		{"pkg/attach/ublk/ublk.go", module + "/pkg/engine", true},
		{"pkg/attach/ublk/ublk_test.go", module + "/pkg/engine/enginetest", true},
		{"pkg/volume/service.go", module + "/pkg/engine", true},
		{"pkg/volume/local/local.go", module + "/pkg/engine", false},
		{"pkg/retention/plan.go", "k8s.io/apimachinery/pkg/apis/meta/v1", true},
		{"pkg/retention/cron.go", "github.com/robfig/cron/v3", false},
		{"pkg/driver/node.go", module + "/pkg/engine/rpc", true},
		{"pkg/driver/sanity_test.go", module + "/pkg/engine", false},
		{"pkg/controller/policy/controller.go", module + "/pkg/driver", true},
		{"pkg/controller/policy/controller.go", "sigs.k8s.io/controller-runtime", false},
		{"pkg/engine/pool.go", "flag", true},
		{"cmd/rowanctl/main.go", "github.com/spf13/cobra", false},
	} {
		broken := slices.ContainsFunc(rules, func(r rule) bool { return r.breaks(c.file, c.path) != "" })
		if broken != c.broken {
			t.Errorf("%s importing %q: broken = %v, want %v", c.file, c.path, broken, c.broken)
		}
	}
}

// breaks says how an import in a file breaks the rule; "" where it does not.
func (r rule) breaks(file, path string) string {
	dir := filepath.ToSlash(filepath.Dir(file))
	if !within(dir, r.under) || r.exact && dir != r.under || r.code && strings.HasSuffix(file, "_test.go") {
		return ""
	}
	if slices.ContainsFunc(r.except, func(e string) bool { return within(dir, e) }) {
		return ""
	}
	own := strings.TrimPrefix(path, module+"/")
	if match(r.never, own) {
		return "not allowed here"
	}
	if strings.HasSuffix(file, "_test.go") && within(own, r.under) {
		return ""
	}
	standard := own == path && !strings.Contains(strings.SplitN(path, "/", 2)[0], ".")
	if r.only != nil && !standard && !match(r.only, own) {
		return "allowed here: the standard library and " + strings.Join(r.only, ", ")
	}
	return ""
}

func match(entries []string, path string) bool {
	return slices.ContainsFunc(entries, func(e string) bool { return within(path, e) })
}

func within(path, folder string) bool { return path == folder || strings.HasPrefix(path, folder+"/") }

// join makes one list of strings and lists of strings.
func join(parts ...any) []string {
	var all []string
	for _, p := range parts {
		switch p := p.(type) {
		case string:
			all = append(all, p)
		case []string:
			all = append(all, p...)
		default:
			panic(fmt.Sprintf("join: %T", p))
		}
	}
	return all
}

// eachFile parses every Go file of the module, those of other systems and of build tags included.
func eachFile(t *testing.T, visit func(name string, file *ast.File)) {
	t.Helper()
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(root, "go.mod")); err != nil {
		t.Fatalf("find the module: %v", err)
	}
	set := token.NewFileSet()
	err = filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base := d.Name()
		if d.IsDir() {
			if path != root && (strings.HasPrefix(base, ".") || base == "testdata" || base == "bin") {
				return filepath.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(base, ".go") {
			return nil
		}
		file, err := parser.ParseFile(set, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		visit(filepath.ToSlash(name), file)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

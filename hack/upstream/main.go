package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/rowan-csi/rowan/hack/cluster/build"
)

// errMissed means that a bar was missed; what was printed says which.
var errMissed = errors.New("a bar was missed")

func main() {
	o := options{out: os.Stdout}
	flag.StringVar(&o.kubeconfig, "kubeconfig", os.Getenv("KUBECONFIG"), "the cluster's kubeconfig")
	flag.StringVar(&o.cluster, "cluster", "", "the folder of a cluster of hack/cluster, into which images are loaded")
	flag.StringVar(&o.results, "results", ".cache/e2e-upstream", "folder for results")
	flag.StringVar(&o.subject, "subject", "", "a file that is what is tested (the image's archive): results of another one are not gone on with")
	flag.StringVar(&o.shard, "shard", "", "run a part of the specs, I/N")
	flag.StringVar(&o.only, "run", "", "run specs that match this expression only; nothing is judged as a whole")
	flag.BoolVar(&o.single, "one-node", false, "the cluster has one node: run what needs all volumes on one, too")
	flag.IntVar(&o.procs, "procs", 8, "how many specs run side by side")
	flag.BoolVar(&o.fresh, "fresh", false, "begin anew, whatever passed before")
	flag.BoolVar(&o.list, "list", false, "print the specs that would run, and end")
	flag.BoolVar(&o.judge, "judge", false, "run nothing: judge the results there are, such as those of several shards")
	flag.BoolVar(&o.record, "record", false, "record the number of passes as the new bar, where all else is met")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGINT, unix.SIGTERM)
	err := o.do(ctx)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "upstream:", err)
		os.Exit(1)
	}
}

type options struct {
	kubeconfig, cluster, results, subject, shard, only string
	procs                                              int
	fresh, list, judge, record, single                 bool
	out                                                io.Writer
}

func (o options) do(ctx context.Context) error {
	s, err := o.suite(ctx)
	if err != nil {
		return err
	}
	tests, ginkgo, err := s.build(ctx)
	if err != nil {
		return fmt.Errorf("build the suite: %w", err)
	}
	if err := s.checkManifest(ctx); err != nil {
		return err
	}
	list, err := readRules(filepath.Join(s.dir, "skips.txt"))
	if err != nil {
		return err
	}
	can := true // of another machine's cluster nothing is known, and nothing excused
	if o.cluster != "" {
		if can, err = canSysResource(); err != nil {
			return err
		}
	}
	list = list.settle(can, o.single)
	p, err := o.plan(ctx, s, tests, list)
	if err != nil {
		return err
	}
	if o.list {
		fmt.Fprintln(o.out, strings.Join(p.run, "\n"))
		return nil
	}
	st := store{dir: o.results}
	if !o.judge {
		if err := o.run(ctx, s, st, p, runner{tests: tests, ginkgo: ginkgo}); err != nil {
			return err
		}
	}
	return o.verdict(s, st, p, list)
}

func (o *options) suite(ctx context.Context) (suite, error) {
	out, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}").Output()
	if err != nil {
		return suite{}, fmt.Errorf("find this module: %w; run the command in it", err)
	}
	user, err := os.UserCacheDir()
	if err != nil {
		return suite{}, err
	}
	if o.results, err = filepath.Abs(o.results); err != nil {
		return suite{}, err
	}
	// The suite is of one version, whatever version the cluster has; it lies beside the programs of its own.
	cache, err := build.Locate(user, build.Kubernetes)
	if err != nil {
		return suite{}, err
	}
	return suite{dir: filepath.Join(strings.TrimSpace(string(out)), "test", "e2e", "upstream"), cache: cache, log: o.out}, nil
}

func (o options) plan(ctx context.Context, s suite, tests string, list rules) (plan, error) {
	part, err := parseShard(o.shard)
	if err != nil {
		return plan{}, err
	}
	var only *regexp.Regexp
	if o.only != "" {
		if only, err = regexp.Compile(o.only); err != nil {
			return plan{}, fmt.Errorf("read -run: %w", err)
		}
	}
	specs, err := s.list(ctx, tests)
	if err != nil {
		return plan{}, err
	}
	return makePlan(specs, list, part, only)
}

func (o options) run(ctx context.Context, s suite, st store, p plan, r runner) error {
	if o.kubeconfig == "" {
		return errors.New("no cluster: name its kubeconfig with -kubeconfig")
	}
	kubeconfig, err := filepath.Abs(o.kubeconfig)
	if err != nil {
		return err
	}
	identity, err := o.identity(s)
	if err != nil {
		return err
	}
	goesOn, err := st.open(identity, o.fresh)
	if err != nil {
		return err
	}
	outcomes, err := st.read()
	if err != nil {
		return err
	}
	known := histories(outcomes)
	var todo []string
	for _, name := range p.run {
		if h, ran := known[name]; !ran || !h.last.ended() {
			todo = append(todo, name)
		}
	}
	if goesOn {
		fmt.Fprintf(o.out, "goes on: %d of %d specs have passed or were skipped\n", len(p.run)-len(todo), len(p.run))
	}
	if len(todo) == 0 {
		return nil
	}
	if o.cluster != "" {
		if err := loadImages(ctx, o.cluster); err != nil {
			return err
		}
	}
	r.kubeconfig, r.manifest, r.procs, r.store, r.out = kubeconfig, s.dir, o.procs, st, o.out
	if r.kubectl, err = kubectl(s); err != nil {
		return err
	}
	return r.run(ctx, todo)
}

// identity names what the results are of: the suite, what is declared, and what is tested. (Not the shard: shards may share a folder.)
func (o options) identity(s suite) (string, error) {
	key, err := s.key()
	if err != nil {
		return "", err
	}
	text := "suite " + key + "\n"
	files := []string{filepath.Join(s.dir, "manifest.yaml"), filepath.Join(s.dir, "sc.yaml"), filepath.Join(s.dir, "vsc.yaml"),
		filepath.Join(s.dir, "vgsc.yaml")}
	if o.subject != "" {
		files = append(files, o.subject)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			return "", fmt.Errorf("read what is tested: %w", err)
		}
		sum := sha256.New()
		_, err = io.Copy(sum, f)
		if err := errors.Join(err, f.Close()); err != nil {
			return "", fmt.Errorf("read what is tested: %w", err)
		}
		text += fmt.Sprintf("%s %x\n", filepath.Base(file), sum.Sum(nil))
	}
	return text, nil
}

func (o options) verdict(s suite, st store, p plan, list rules) error {
	passes := filepath.Join(s.dir, "passes.txt")
	least, err := readPasses(passes)
	if err != nil {
		return err
	}
	outcomes, err := st.read()
	if err != nil {
		return err
	}
	results := histories(outcomes)
	v := judge(p, p.run, results, list, least)
	v.print(o.out, results, p.run)
	if v.whole && o.record && v.passed > 0 && v.failed+v.flaky+v.notRun+len(v.badSkips)+len(v.unused) == 0 {
		if err := recordPasses(passes, v.passed); err != nil {
			return err
		}
		fmt.Fprintf(o.out, "recorded: %d passes\n", v.passed)
		v.least = v.passed
	}
	if v.missed() {
		return errMissed
	}
	if v.whole {
		return st.close()
	}
	return nil
}

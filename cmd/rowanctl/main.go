// Command rowanctl is the engine's command line: pools, volumes and snapshots of the node it runs on, through the engine's socket.
//
// It exits with 0 when it did what was asked, 1 when that went wrong, 2 when it was asked wrongly.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"time"
	_ "time/tzdata" // zones of policies, where the machine has no zone data

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
)

// version is set by the build (-ldflags -X main.version=…).
var version string

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	context.AfterFunc(ctx, stop)
	_, err := unix.IoctlGetTermios(int(os.Stderr.Fd()), unix.TCGETS)
	a := &app{out: os.Stdout, err: os.Stderr, terminal: err == nil, after: time.After}
	os.Exit(a.run(ctx, os.Args[1:]))
}

// app is one run of the program.
type app struct {
	out, err io.Writer
	terminal bool                                 // err is one
	after    func(time.Duration) <-chan time.Time // the progress line's clock

	socket, output string
	timeout        time.Duration
	parsed         bool // arguments and flags were right: from here on errors are not of usage
}

// usageError is an error of how the program was called that cobra does not find.
type usageError struct{ error }

func usagef(format string, args ...any) error { return usageError{fmt.Errorf(format, args...)} }

func (a *app) run(ctx context.Context, args []string) int {
	root := a.command()
	root.SetArgs(args)
	root.SetOut(a.out)
	root.SetErr(a.err)
	cmd, err := root.ExecuteContextC(ctx)
	if err == nil {
		return exitOK
	}
	fmt.Fprintf(a.err, "error: %v\n", err)
	var usage usageError
	if !a.parsed || errors.As(err, &usage) {
		fmt.Fprintf(a.err, "hint: see %s --help\n", cmd.CommandPath())
		return exitUsage
	}
	if h := hint(err); h != "" {
		fmt.Fprintf(a.err, "hint: %s\n", h)
	}
	return exitError
}

func (a *app) command() *cobra.Command {
	root := &cobra.Command{
		Use:   "rowanctl",
		Short: "Work with this node's pools, volumes and snapshots",
		Long: "rowanctl works with the pools, volumes and snapshots of the node it runs on, through rowan-engine's socket.\n\n" +
			"Sizes are bytes, with a suffix if you like: Ki Mi Gi Ti (1024), k M G T (1000). Where a command needs a pool and the\n" +
			"engine has just one, --pool may be left out. Exit codes: 0 done, 1 it went wrong, 2 wrong usage.",
		SilenceUsage:  true,
		SilenceErrors: true,
		PersistentPreRunE: func(*cobra.Command, []string) error {
			if a.output != "table" && a.output != "json" {
				return usagef("output format %q: json and table are known", a.output)
			}
			a.parsed = true
			return nil
		},
	}
	f := root.PersistentFlags()
	f.StringVar(&a.socket, "socket", "/run/rowan/engine.sock", "the engine's socket")
	f.StringVarP(&a.output, "output", "o", "table", "how to print: table or json")
	f.DurationVar(&a.timeout, "timeout", 0, "how long a call may take (0: as long as the engine allows)")
	root.AddCommand(a.poolCommand(), a.volumeCommand(), a.snapshotCommand(), a.retentionCommand(), newBenchCommand(), a.versionCommand())
	group(root)
	return root
}

// group makes commands that only hold others refuse what they do not know, instead of printing their help as if all were well.
func group(cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		group(c)
	}
	if !cmd.HasSubCommands() {
		return
	}
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return usagef("%s has no command %q", cmd.CommandPath(), args[0])
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error { return cmd.Help() }
}

func (a *app) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the versions of rowanctl and of the engine",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd, func(ctx context.Context, s *session) error {
				v := versionView{Client: buildVersion()}
				err := s.wait("asking for the version", func() (err error) {
					v.Engine, err = s.Version(ctx)
					return err
				})
				if perr := a.print(v); err == nil {
					err = perr
				}
				return err
			})
		},
	}
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

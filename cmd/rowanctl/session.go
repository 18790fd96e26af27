package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
)

// patience is how long a call takes before its progress is shown.
const patience = time.Second

// session is a connection to the engine for one command.
type session struct {
	*rpc.Client
	app *app
}

// with runs f with the engine.
func (a *app) with(cmd *cobra.Command, f func(context.Context, *session) error) error {
	ctx := cmd.Context()
	if a.timeout < 0 {
		return usagef("--timeout %s: it must not be negative", a.timeout)
	}
	if a.timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, a.timeout)
		defer cancel()
	}
	c, err := rpc.Dial(a.socket)
	if err != nil {
		return err
	}
	return errors.Join(f(ctx, &session{Client: c, app: a}), c.Close())
}

// wait runs one call, and says on stderr what it waits for when that takes long: every second anew on a terminal, once elsewhere.
func (s *session) wait(what string, call func() error) error {
	return s.waitTelling(func() string { return what }, call)
}

// waitTelling is wait for a call that tells how far it is.
func (s *session) waitTelling(what func() string, call func() error) error {
	a := s.app
	done := make(chan error, 1)
	go func() { done <- call() }()
	for seconds := 1; ; seconds++ {
		select {
		case err := <-done:
			if a.terminal && seconds > 1 {
				fmt.Fprint(a.err, "\r\x1b[K")
			}
			return err
		case <-a.after(patience):
		}
		switch {
		case a.terminal:
			fmt.Fprintf(a.err, "\r\x1b[K%s… %d s", what(), seconds)
		case seconds == 1:
			fmt.Fprintf(a.err, "%s…\n", what())
		}
	}
}

// pool is the one named, or the only one there is.
func (s *session) pool(ctx context.Context, named string) (string, error) {
	if named != "" {
		return named, nil
	}
	var pools []engine.PoolInfo
	err := s.wait("looking for the pool", func() (err error) {
		pools, err = s.Pools(ctx)
		return err
	})
	if err != nil {
		return "", err
	}
	switch len(pools) {
	case 0:
		return "", fmt.Errorf("choose the pool: %w: this engine has no pools yet", engine.ErrNotFound)
	case 1:
		return pools[0].Name, nil
	}
	names := make([]string, len(pools))
	for i, p := range pools {
		names[i] = p.Name
	}
	return "", usagef("this engine has %d pools: say which with --pool (%s)", len(pools), strings.Join(names, ", "))
}

// inPool is with, for commands that work in a pool.
func (a *app) inPool(cmd *cobra.Command, named string, f func(ctx context.Context, s *session, pool string) error) error {
	return a.with(cmd, func(ctx context.Context, s *session) error {
		pool, err := s.pool(ctx, named)
		if err != nil {
			return err
		}
		return f(ctx, s, pool)
	})
}

// names is the validator of arguments: each word of usage is one, and a last one that ends in "..." stands for any number but none.
func names(usage ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		many := len(usage) > 0 && strings.HasSuffix(usage[len(usage)-1], "...")
		switch {
		case len(args) == len(usage) || len(args) > len(usage) && many:
			return nil
		case len(usage) == 0:
			return usagef("%s takes no arguments", cmd.CommandPath())
		default:
			return usagef("%s needs %s, and got %d", cmd.CommandPath(), strings.Join(usage, " "), len(args))
		}
	}
}

package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/pflag"
	"k8s.io/klog/v2"

	"github.com/rowan-csi/rowan/pkg/driver"
	"github.com/rowan-csi/rowan/pkg/driver/mount"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/local"
)

// standaloneOptions are --standalone's.
type standaloneOptions struct {
	shared     *sharedOptions
	pool       string
	overcommit float64
}

func (o *standaloneOptions) flags(f *pflag.FlagSet) {
	f.StringVar(&o.pool, "pool", "default", "--standalone: the pool of volumes whose parameters name none")
	f.Float64Var(&o.overcommit, "overcommit", volume.DefaultAdmission.Overcommit,
		"--standalone: how much space a pool may promise, as a multiple of its size")
}

func (o *standaloneOptions) check() error {
	switch {
	case o.shared.node == "":
		return errors.New("--node-name is empty, and so is the host's name: set it")
	case o.pool == "":
		return errors.New("--pool is empty: name the pool that volumes go to")
	case o.shared.maxVolumes < 0:
		return fmt.Errorf("--max-volumes-per-node %d: must not be negative", o.shared.maxVolumes)
	case !(o.overcommit > 0):
		return fmt.Errorf("--overcommit %g: must be over 0", o.overcommit)
	}
	return nil
}

func (o *standaloneOptions) run(ctx context.Context) error {
	if err := o.check(); err != nil {
		return err
	}
	logger := klog.FromContext(ctx)
	frozen, err := freezer(ctx, o.shared.frozenDir) // first: what an earlier process left frozen is in somebody's use
	if err != nil {
		return err
	}
	engine, err := rpc.Dial(o.shared.engineSocket)
	if err != nil {
		return err
	}
	service := volume.Open(local.New(engine, local.Config{
		Node: volume.NodeID(o.shared.node), Pool: o.pool, Admission: volume.Admission{Overcommit: o.overcommit},
		Freeze: freezing(frozen),
	}))
	listener, err := driver.Listen(o.shared.endpoint)
	if err != nil {
		return errors.Join(err, engine.Close())
	}
	server := driver.NewServer(logger, driver.Services{
		Identity:   driver.NewIdentity(version, true, service.Health),
		Controller: driver.NewController(service, driver.ParamPool),
		Group:      driver.NewGroupController(service),
		Node:       driver.NewNode(service, mount.New(), driver.NodeOptions{MaxVolumes: o.shared.maxVolumes}),
	})
	logger.Info("Serving", "driver", driver.Name, "version", version, "endpoint", o.shared.endpoint, "node", o.shared.node, "pool", o.pool,
		"engine", o.shared.engineSocket)
	err = driver.Serve(ctx, listener, server, grace)
	logger.Info("Stopped")
	return errors.Join(err, engine.Close())
}

package stack

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/rowan-csi/rowan/pkg/attach/fuseloop"
	"github.com/rowan-csi/rowan/pkg/attach/fuseloop/keeper"
	"github.com/rowan-csi/rowan/pkg/engine"
	"github.com/rowan-csi/rowan/pkg/engine/rpc"
)

// ready is how long a process may take to answer.
const ready = 60 * time.Second

// Node is the name the driver gives this machine.
const Node = "local"

// Config says what to run.
type Config struct {
	Bin    string // folder of rowan-engine and rowan-driver (Build makes them)
	Name   string // of the temporary folder and, with a number behind it, of the pool
	Size   int64  // bytes of data the pool may hold, a multiple of 1 MiB; 0: 90 % of what its file system has free
	Disk   int64  // bytes of the file below the pool's file system; 0: enough for Size
	Driver bool   // run the driver, too
	Logs   string // folder for the processes' logs; "": below Dir, so they go with it
	Temp   string // folder to make the temporary folder in; "": /var/tmp
}

// Stack is what runs. Its fields do not change.
type Stack struct {
	Dir          string // temporary folder; for mount points, too
	Pool         string // the pool's name
	Member       string // the pool's folder
	EngineSocket string
	Endpoint     string // of the CSI services, unix://…
	FrozenDir    string // where the driver notes what it freezes
	Engine       *rpc.Client
	CSI          *grpc.ClientConn // nil without Config.Driver

	cfg      Config
	ringDir  string
	disk     *disk
	keeper   *process
	engine   *process
	driver   *process
	closing  sync.Once
	closeErr error
}

// Check says what this machine lacks; nil if a stack can run here.
func Check() error {
	if os.Geteuid() != 0 {
		return errors.New("needs root: mounts and loop devices")
	}
	if err := fuseloop.Available(); err != nil {
		return err
	}
	_, err := ringParent()
	return err
}

// Start runs a stack.
func Start(ctx context.Context, cfg Config) (*Stack, error) {
	if err := Check(); err != nil {
		return nil, err
	}
	s := &Stack{cfg: cfg}
	if err := s.start(ctx); err != nil {
		return nil, errors.Join(err, s.Close())
	}
	return s, nil
}

func (s *Stack) start(ctx context.Context) (err error) {
	if err := s.makeFolders(); err != nil {
		return err
	}
	if s.disk, err = newDisk(ctx, filepath.Join(s.Dir, "disk"), s.Dir+"/disk.img", s.cfg.diskSize()); err != nil {
		return err
	}
	s.keeper = s.process("keeper", "rowan-engine", "keeper", "--keeper-socket", s.keeperSocket())
	if err := s.keeper.start(); err != nil {
		return err
	}
	if err := s.await(ctx, s.keeper, func(ctx context.Context) error {
		_, err := keeper.NewClient(s.keeperSocket()).List(ctx)
		return err
	}); err != nil {
		return err
	}
	s.engine = s.process("engine", "rowan-engine", "--start-keeper=false", "--keeper-socket", s.keeperSocket(), "--socket", s.EngineSocket,
		"--state-dir", filepath.Join(s.Dir, "state"), "--ring-dir", s.ringDir)
	if err := s.StartEngine(ctx); err != nil {
		return err
	}
	s.Member = filepath.Join(s.disk.dir, "pool")
	if _, err := s.Engine.CreatePool(ctx, engine.PoolSpec{Name: s.Pool, Directory: s.Member, Size: s.cfg.Size}); err != nil {
		return err
	}
	if !s.cfg.Driver {
		return nil
	}
	return s.startDriver(ctx)
}

func (s *Stack) makeFolders() (err error) {
	parent := s.cfg.Temp
	if parent == "" {
		parent = "/var/tmp" // /tmp is in memory on many machines
	}
	if s.Dir, err = os.MkdirTemp(parent, "rowan-"+s.cfg.Name+"-"); err != nil {
		return fmt.Errorf("make a temporary folder: %w", err)
	}
	// Unique, because devices are told apart by the names of their volumes and pools.
	s.Pool = fmt.Sprintf("%s-%d", s.cfg.Name, os.Getpid())
	s.EngineSocket = filepath.Join(s.Dir, "engine.sock")
	s.Endpoint = "unix://" + filepath.Join(s.Dir, "csi.sock")
	parent, err = ringParent()
	if err != nil {
		return err
	}
	if s.ringDir, err = os.MkdirTemp(parent, "rowan-"+s.cfg.Name+"-ring-"); err != nil {
		return fmt.Errorf("make a folder for the ring: %w", err)
	}
	s.FrozenDir = filepath.Join(s.ringDir, "frozen")
	if s.cfg.Logs == "" {
		s.cfg.Logs = filepath.Join(s.Dir, "logs")
	}
	if err := os.MkdirAll(s.cfg.Logs, 0o755); err != nil {
		return fmt.Errorf("make the logs' folder: %w", err)
	}
	s.Engine, err = rpc.Dial(s.EngineSocket)
	return err
}

func (s *Stack) keeperSocket() string { return filepath.Join(s.Dir, "keeper.sock") }

func (s *Stack) startDriver(ctx context.Context) (err error) {
	s.driver = s.process("driver", "rowan-driver", "--standalone", "--endpoint", s.Endpoint, "--engine-socket", s.EngineSocket, "--pool", s.Pool,
		"--node-name", Node, "--frozen-dir", s.FrozenDir)
	if err := s.driver.start(); err != nil {
		return err
	}
	if s.CSI, err = grpc.NewClient(s.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials())); err != nil {
		return fmt.Errorf("connect to the driver: %w", err)
	}
	return s.await(ctx, s.driver, func(ctx context.Context) error {
		resp, err := csi.NewIdentityClient(s.CSI).Probe(ctx, &csi.ProbeRequest{}, grpc.WaitForReady(true))
		if err == nil && !resp.GetReady().GetValue() {
			err = errors.New("the driver says that it is not ready")
		}
		return err
	})
}

// KillDriver ends the driver as kill -9 does, and StartDriver starts it again.
func (s *Stack) KillDriver() error { return s.driver.kill() }

// StartDriver starts the driver, which must not run, and waits until it answers.
func (s *Stack) StartDriver(ctx context.Context) error {
	if err := s.CSI.Close(); err != nil {
		return fmt.Errorf("start the driver: %w", err)
	}
	return s.startDriver(ctx)
}

// StartEngine starts the engine, which must not run, and waits until its pools are open and its devices answer.
func (s *Stack) StartEngine(ctx context.Context) error {
	if err := s.engine.start(); err != nil {
		return err
	}
	return s.await(ctx, s.engine, s.serving)
}

// LaunchEngine starts the engine and waits for nothing.
func (s *Stack) LaunchEngine() error { return s.engine.start() }

// KillEngine ends the engine with SIGKILL and waits for its end.
func (s *Stack) KillEngine() error { return s.engine.kill() }

// StopEngine ends the engine in order.
func (s *Stack) StopEngine(ctx context.Context) error { return s.engine.stop(ctx) }

// serving asks whether the engine does all it has to.
func (s *Stack) serving(ctx context.Context) error {
	pools, err := s.Engine.Pools(ctx)
	if err != nil {
		return err
	}
	for _, p := range pools {
		if p.State != "Ready" {
			return fmt.Errorf("pool %s is %s %s", p.Name, p.State, p.Reason)
		}
	}
	attached, err := s.Engine.Attachments(ctx, "")
	if err != nil {
		return err
	}
	for _, a := range attached {
		if a.Stalled != "" {
			return fmt.Errorf("volume %s: %s", a.Volume, a.Stalled)
		}
	}
	return nil
}

// await asks until the answer is nil, the process ends, or it took too long.
func (s *Stack) await(ctx context.Context, p *process, ask func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, ready)
	defer cancel()
	return Until(ctx, p.name+" answers", func() error {
		select {
		case <-p.ended():
			cancel()
			return fmt.Errorf("it ended: %w; its log ends with\n%s", p.result(), p.tail())
		default:
		}
		return ask(ctx)
	})
}

// Until asks every few milliseconds until ask answers nil. When ctx ends before, its last answer is the error.
func Until(ctx context.Context, what string, ask func() error) error {
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := ask()
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w (%w)", what, err, context.Cause(ctx))
		}
	}
}

package main

import (
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/rowan-csi/rowan/hack/stack"
)

// freed is how long the background passes may take to give the space back.
const freed = time.Minute

// scene is what the steps of the performance share.
type scene struct {
	*demo
	plugin
	s                          *stack.Stack
	rowanctl                   string
	volume, snapshot, restored string // CSI handles
	content                    tree   // what was copied
}

// play does all steps.
func (d *demo) play(ctx context.Context, s *stack.Stack, rowanctl string) error {
	c := &scene{demo: d, plugin: newPlugin(s), s: s, rowanctl: rowanctl}
	before, err := c.used(ctx)
	if err != nil {
		return err
	}
	for _, step := range []func(context.Context) error{c.fill, c.cut, c.wreck, c.restore, c.rollBack, c.deleteAll} {
		if err := step(ctx); err != nil {
			return fmt.Errorf("%s: %w", d.what, err)
		}
	}
	return c.awaitFree(ctx, before)
}

func (c *scene) used(ctx context.Context) (int64, error) {
	p, err := c.s.Engine.Pool(ctx, c.s.Pool)
	return p.Used, err
}

// told ends a step with how full the pool is after it.
func (c *scene) told(ctx context.Context, result string, args ...any) (time.Duration, error) {
	took := time.Since(c.step)
	used, err := c.used(ctx)
	if err != nil {
		return took, err
	}
	c.done("%s", strings.Join([]string{fmt.Sprintf(result, args...), "pool: " + size(used) + " used"}, "; "))
	return took, nil
}

func (c *scene) fill(ctx context.Context) (err error) {
	c.began("create", "CreateVolume: 10 GiB, ext4")
	if c.volume, err = c.create(ctx, "data", ""); err != nil {
		return err
	}
	c.done("")
	c.began("use", "NodeStageVolume, NodePublishVolume: attach, mkfs, mount")
	dir, err := c.use(ctx, c.volume)
	if err != nil {
		return err
	}
	if _, err := c.told(ctx, "mounted"); err != nil {
		return err
	}
	c.began("fill", "copy %s, sync", c.files)
	content, total, err := copyTree(ctx, c.files, filepath.Join(dir, "files"), c.limit<<20)
	if err != nil {
		return err
	}
	if len(content) == 0 {
		return fmt.Errorf("no file of at most %d MiB is in %s: choose another folder with -files", c.limit, c.files)
	}
	c.content = content
	if err := syncFS(dir); err != nil {
		return err
	}
	_, err = c.told(ctx, "%d files, %s", len(content), size(total))
	return err
}

func (c *scene) cut(ctx context.Context) (err error) {
	c.began("snapshot", "CreateSnapshot, the volume stays mounted")
	if c.snapshot, err = c.plugin.snapshot(ctx, "before", c.volume); err != nil {
		return err
	}
	c.took["snapshot"], err = c.told(ctx, "of 10 GiB")
	return err
}

func (c *scene) wreck(ctx context.Context) error {
	_, target := c.paths(c.volume)
	dir := filepath.Join(target, "files")
	c.began("wreck", "delete every second file, overwrite the others with noise, sync")
	deleted, overwritten, err := c.content.wreck(ctx, dir)
	if err != nil {
		return err
	}
	if err := syncFS(dir); err != nil {
		return err
	}
	if _, err := c.told(ctx, "%d deleted, %d overwritten", deleted, overwritten); err != nil {
		return err
	}
	now, err := hashTree(ctx, dir)
	if err == nil && c.content.differs(now) != len(c.content) {
		err = fmt.Errorf("only %d of %d files differ from what they were", c.content.differs(now), len(c.content))
	}
	return err
}

func (c *scene) restore(ctx context.Context) (err error) {
	c.began("restore", "CreateVolume from the snapshot")
	if c.restored, err = c.create(ctx, "restored", c.snapshot); err != nil {
		return err
	}
	if c.took["restore"], err = c.told(ctx, "a second volume"); err != nil {
		return err
	}
	c.began("use", "NodeStageVolume, NodePublishVolume of the restored volume")
	dir, err := c.use(ctx, c.restored)
	if err != nil {
		return err
	}
	c.done("mounted, beside the first")
	return c.compare(ctx, dir, "the restored volume")
}

// compare reads all files. The volume was mounted after the last change, so they come from its device.
func (c *scene) compare(ctx context.Context, dir, what string) error {
	c.began("compare", "hash all files of %s", what)
	now, err := hashTree(ctx, filepath.Join(dir, "files"))
	if err != nil {
		return err
	}
	differ := c.content.differs(now)
	c.compared += len(now)
	c.differ += differ
	c.done("%d files, %d differ from those copied", len(now), differ)
	return nil
}

func (c *scene) rollBack(ctx context.Context) error {
	c.began("stop using", "NodeUnpublishVolume, NodeUnstageVolume of the first volume")
	if err := c.unuse(ctx, c.volume); err != nil {
		return err
	}
	c.done("")
	c.began("roll back", "rowanctl snapshot rollback")
	if out, err := exec.CommandContext(ctx, c.rowanctl, "--socket", c.s.EngineSocket, "snapshot", "rollback", c.snapshot).CombinedOutput(); err != nil {
		return fmt.Errorf("rowanctl: %w: %s", err, out)
	}
	var err error
	if c.took["rollback"], err = c.told(ctx, "in place"); err != nil {
		return err
	}
	c.began("use", "NodeStageVolume, NodePublishVolume of the first volume")
	dir, err := c.use(ctx, c.volume)
	if err != nil {
		return err
	}
	c.done("mounted")
	return c.compare(ctx, dir, "the first volume")
}

func (c *scene) deleteAll(ctx context.Context) error {
	c.began("stop using", "both volumes")
	for _, id := range []string{c.volume, c.restored} {
		if err := c.unuse(ctx, id); err != nil {
			return err
		}
	}
	c.done("")
	c.began("delete", "DeleteSnapshot, DeleteVolume of both")
	if err := c.deleteSnapshot(ctx, c.snapshot); err != nil {
		return err
	}
	for _, id := range []string{c.volume, c.restored} {
		if err := c.deleteVolume(ctx, id); err != nil {
			return err
		}
	}
	c.took["delete"] = c.done("")
	return nil
}

// awaitFree waits until the pool is as empty as it was, and has it checked.
func (c *scene) awaitFree(ctx context.Context, before int64) error {
	c.began("free", "wait for the background passes, rowanctl pool check")
	waiting, cancel := context.WithTimeout(ctx, freed)
	defer cancel()
	err := stack.Until(waiting, "the pool is empty", func() error {
		p, err := c.s.Engine.Pool(waiting, c.s.Pool)
		if err == nil && (p.Jobs > 0 || p.Used != before) {
			c.unfreed = p.Used - before
			err = fmt.Errorf("%d bytes are used, %d were before; %d passes to do", p.Used, before, p.Jobs)
		}
		return err
	})
	if err != nil {
		return err
	}
	c.unfreed = 0
	if out, err := exec.CommandContext(ctx, c.rowanctl, "--socket", c.s.EngineSocket, "pool", "check").CombinedOutput(); err != nil {
		return fmt.Errorf("rowanctl pool check: %w: %s", err, out)
	}
	_, err = c.told(ctx, "metadata is whole")
	return err
}

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/rowan-csi/rowan/hack/cluster/build"
	"github.com/rowan-csi/rowan/hack/cluster/image"
	"github.com/rowan-csi/rowan/hack/cluster/kube"
)

func (t *tool) image() *cobra.Command {
	var out string
	cmd := &cobra.Command{
		Use:   "image NAME TAG FILE...",
		Short: "Write an image archive of programs with their libraries, and of other files",
		Long: "Write an image archive, for load and `up --image`. FILE is a program's name (it comes with its shared libraries, under the path it has\n" +
			"here), or SOURCE:PATH for a file under a path of its own.",
		Args: cobra.MinimumNArgs(3),
		RunE: func(cmd *cobra.Command, args []string) error {
			made, err := parseImage(cmd.Context(), args)
			if err != nil {
				return err
			}
			if out == "" {
				out = strings.NewReplacer("/", "_", ":", "_").Replace(made.Name) + ".tar"
			}
			if err := made.Write(out); err != nil {
				return err
			}
			fmt.Println(out)
			return nil
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", "", "the archive (default: NAME_TAG.tar in this folder)")
	return cmd
}

func parseImage(ctx context.Context, args []string) (image.Image, error) {
	made := image.Image{Name: args[0] + ":" + args[1], Files: image.Merged()}
	var programs []string
	for _, arg := range args[2:] {
		source, path, found := strings.Cut(arg, ":")
		if !found {
			programs = append(programs, arg)
			continue
		}
		made.Files = append(made.Files, image.File{Path: path, Source: source})
	}
	files, err := image.Programs(ctx, programs...)
	made.Files = append(made.Files, files...)
	return made, err
}

func (t *tool) rowan() *cobra.Command {
	var out, name string
	var load bool
	cmd := &cobra.Command{
		Use:   "rowan",
		Short: "Build this tree's programs, make their image and load it into the cluster",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			root, err := moduleRoot(cmd.Context())
			if err != nil {
				return err
			}
			if err := build.Rowan(cmd.Context(), root, name, out); err != nil {
				return err
			}
			fmt.Println(out)
			if !load {
				return nil
			}
			c, err := kube.Open(t.dir)
			if errors.Is(err, kube.ErrNone) && !cmd.Flags().Changed("load") {
				return nil // it is for a cluster to come: up --image
			}
			if err != nil {
				return err
			}
			return c.Load(cmd.Context(), out)
		},
	}
	cmd.Flags().StringVarP(&out, "output", "o", filepath.Join(os.TempDir(), "rowan-image.tar"), "the archive")
	cmd.Flags().StringVar(&name, "name", build.RowanImage, "the image's name and tag")
	cmd.Flags().BoolVar(&load, "load", true, "load it into every node of the cluster; by default if there is one")
	return cmd
}

func (t *tool) load() *cobra.Command {
	return &cobra.Command{
		Use:   "load ARCHIVE...",
		Short: "Load image archives into every node",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := kube.Open(t.dir)
			if err != nil {
				return err
			}
			return c.Load(cmd.Context(), args...)
		},
	}
}

func (t *tool) logs() *cobra.Command {
	return &cobra.Command{
		Use:   "logs FOLDER",
		Short: "Copy all logs, events and objects into a folder",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := kube.Open(t.dir)
			if err != nil {
				return err
			}
			return c.Collect(cmd.Context(), args[0])
		},
	}
}

package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/runtime"
	clientgoscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"
	ctrl "sigs.k8s.io/controller-runtime"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/config"

	"github.com/rowan-csi/rowan/pkg/install"
)

// checkTime is how long the API server may take to list the volumes.
const checkTime = time.Minute

// applyCommand is what the chart's Job runs after an installation or upgrade.
func applyCommand() *cobra.Command {
	timeout := time.Minute
	cmd := &cobra.Command{
		Use:   "apply FOLDER",
		Short: "Apply the PoolSets in a folder of YAML files, once their definition is there",
		Args:  cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), timeout)
			defer cancel()
			c, err := plainClient()
			if err != nil {
				return err
			}
			return install.Apply(ctx, c, os.DirFS(args[0]), install.DefaultRetry, func(object string) {
				fmt.Fprintln(cmd.OutOrStdout(), object, "applied")
			})
		},
	}
	cmd.Flags().DurationVar(&timeout, "timeout", timeout, "how long to wait for the API server and the definitions")
	return cmd
}

// checkUninstallCommand is what the chart's Job runs before an uninstallation.
func checkUninstallCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "check-uninstall",
		Short: "Fail while the cluster has volumes or snapshots of Rowan's",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx, cancel := context.WithTimeout(cmd.Context(), checkTime)
			defer cancel()
			c, err := plainClient()
			if err != nil {
				return err
			}
			return install.CheckUninstall(ctx, c)
		},
	}
}

// plainClient speaks to the API server without a cache.
func plainClient() (client.Client, error) {
	ctrl.SetLogger(klog.Background())
	cluster, err := config.GetConfig()
	if err != nil {
		return nil, fmt.Errorf("find the API server: %w", err)
	}
	scheme := runtime.NewScheme()
	if err := clientgoscheme.AddToScheme(scheme); err != nil {
		return nil, fmt.Errorf("make the scheme: %w", err)
	}
	c, err := client.New(cluster, client.Options{Scheme: scheme})
	if err != nil {
		return nil, fmt.Errorf("make a client: %w", err)
	}
	return c, nil
}

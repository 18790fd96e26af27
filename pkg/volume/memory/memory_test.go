package memory_test

import (
	"testing"

	"github.com/rowan-csi/rowan/pkg/volume"
	"github.com/rowan-csi/rowan/pkg/volume/memory"
	"github.com/rowan-csi/rowan/pkg/volume/volumetest"
)

func TestConformance(t *testing.T) {
	volumetest.Run(t, func(*testing.T) volume.Service {
		return memory.New(memory.Config{Node: volumetest.Node, Pool: volumetest.Pool, Size: volumetest.PoolSize})
	})
}

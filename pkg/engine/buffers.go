package engine

import (
	"sync"

	"github.com/rowan-csi/rowan/pkg/engine/fsys"
)

var blockBuffers = sync.Pool{New: func() any { b := fsys.AlignedBuffer(BlockSize); return &b }}

func getBlock() *[]byte  { return blockBuffers.Get().(*[]byte) }
func putBlock(b *[]byte) { blockBuffers.Put(b) }

package metafs

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Options are what the engine's DB is opened with. cacheBytes is its own cache of table blocks. The caller may add event listeners, and keeps
// DataCorruption. docs/design/metadata-store.md has the measurements behind the numbers.
func Options(fs *FS, cacheBytes int64) *pebble.Options {
	o := &pebble.Options{
		FS:                 fs,
		WALDir:             pebble.MakeStoreRelativePath(fs, logFolder),
		CacheSize:          cacheBytes,
		Logger:             logger{fs},
		FormatMajorVersion: pebble.FormatNewest,

		// Up to four memtables: the one in use and three that wait for their flush before writes stall.
		MemTableSize:                16 << 20,
		MemTableStopWritesThreshold: 4,
		CompactionConcurrencyRange:  func() (int, int) { return 1, 1 },

		// Pebble compacts L0 at half this many sublevels. With its default of 4, random runs were rewritten twice as often.
		L0CompactionThreshold: 8,
		L0StopWritesThreshold: 24,
		MaxOpenFiles:          500,
		MaxManifestFileSize:   16 << 20,
	}
	// The bottom level by zstd, what is rewritten soon by something faster.
	o.ApplyCompressionSettings(func() pebble.DBCompressionSettings { return pebble.DBCompressionBalanced })
	o.EventListener = &pebble.EventListener{
		// Pebble's default exits the process. The read that met the damage gets its error all the same, so that no guest hangs on it.
		DataCorruption: func(info pebble.DataCorruptionInfo) { fs.cfg.OnFatal(fmt.Errorf("metadata is damaged: %s", info)) },
	}
	return o
}

// logger keeps Pebble from writing logs and from exiting. What an operator should know comes by events.
type logger struct{ fs *FS }

func (logger) Infof(string, ...any)  {}
func (logger) Errorf(string, ...any) {}

func (l logger) Fatalf(format string, args ...any) {
	l.fs.fatal(fmt.Errorf("metadata store: "+format, args...))
}

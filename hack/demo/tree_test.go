package main

import (
	"os"
	"path/filepath"
	"testing"
)

func TestTree(t *testing.T) {
	from, to := t.TempDir(), filepath.Join(t.TempDir(), "files")
	for name, text := range map[string]string{"a": "one", "b/c": "two", "b/d": "three", "z": "beyond the limit"} {
		path := filepath.Join(from, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	content, total, err := copyTree(t.Context(), from, to, 12)
	if err != nil || len(content) != 3 || total != 11 {
		t.Fatalf("copied %d files of %d bytes, %v; want 3 of 11", len(content), total, err)
	}
	now, err := hashTree(t.Context(), to)
	if err != nil || content.differs(now) != 0 {
		t.Fatalf("after the copy %d differ, %v", content.differs(now), err)
	}
	if err := os.WriteFile(filepath.Join(to, "new"), nil, 0o644); err != nil {
		t.Fatal(err)
	}
	deleted, overwritten, err := content.wreck(t.Context(), to)
	if err != nil || deleted != 2 || overwritten != 1 {
		t.Fatalf("wrecked %d and %d, %v; want 2 and 1", deleted, overwritten, err)
	}
	if now, err = hashTree(t.Context(), to); err != nil || content.differs(now) != 4 {
		t.Errorf("%d differ, %v; want the 3 that were wrecked and the new one", content.differs(now), err)
	}
}

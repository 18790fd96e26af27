package main

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/spf13/cobra"
)

const docsFile = "../../docs/rowanctl.md"

// TestDocs keeps docs/rowanctl.md what the commands say of themselves, with a session on a real engine in front (testdata/session.txt).
func TestDocs(t *testing.T) {
	session, err := os.ReadFile("testdata/session.txt")
	if err != nil {
		t.Fatal(err)
	}
	var b bytes.Buffer
	b.WriteString("# rowanctl\n\n<!-- Made by go test ./cmd/rowanctl -update; do not edit. -->\n\n")
	root := (&app{}).command()
	b.WriteString(root.Long + "\n\n## A session\n\n```console\n" + string(session) + "```\n\n## Exit codes\n\n")
	fmt.Fprintf(&b, "| code | meaning |\n|---|---|\n| %d | done |\n"+
		"| %d | it went wrong; the reason and a hint are on stderr |\n| %d | wrong usage |\n\n",
		exitOK, exitError, exitUsage)
	b.WriteString("## Flags of every command\n\n```\n" + root.PersistentFlags().FlagUsages() + "```\n\n## Commands\n")
	for _, c := range root.Commands() {
		document(&b, c)
	}
	if *update {
		if err := os.WriteFile(docsFile, b.Bytes(), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	have, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(have, b.Bytes()) {
		t.Error("docs/rowanctl.md is not what the commands say: go test ./cmd/rowanctl -update")
	}
}

func document(b *bytes.Buffer, c *cobra.Command) {
	if c.HasSubCommands() {
		for _, sub := range c.Commands() {
			document(b, sub)
		}
		return
	}
	text := c.Short + "."
	if c.Long != "" {
		text = c.Long
	}
	fmt.Fprintf(b, "\n### %s\n\n%s\n\n```\n%s\n", c.CommandPath(), text, c.UseLine())
	if flags := c.NonInheritedFlags().FlagUsages(); flags != "" {
		b.WriteString("\n" + flags)
	}
	if c.Example != "" {
		b.WriteString("\nExamples:\n" + strings.TrimRight(c.Example, "\n") + "\n")
	}
	b.WriteString("```\n")
}

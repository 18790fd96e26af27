package main

import (
	"github.com/rowan-csi/rowan/pkg/bytesize"
	"github.com/rowan-csi/rowan/pkg/uring"
)

// size is a flag of bytes, such as 128Mi.
type size int64

func (s *size) String() string { return bytesize.Format(int64(*s)) }
func (s *size) Type() string   { return "size" }

func (s *size) Set(text string) error {
	n, err := bytesize.Parse(text)
	*s = size(n)
	return err
}

// ringMode is a flag that says when io_uring is used.
type ringMode uring.Mode

func (m *ringMode) String() string { return uring.Mode(*m).String() }
func (m *ringMode) Type() string   { return "mode" }

func (m *ringMode) Set(text string) error {
	mode, err := uring.ParseMode(text)
	*m = ringMode(mode)
	return err
}

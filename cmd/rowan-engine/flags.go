package main

import "github.com/rowan-csi/rowan/pkg/bytesize"

// size is a flag of bytes, such as 128Mi.
type size int64

func (s *size) String() string { return bytesize.Format(int64(*s)) }
func (s *size) Type() string   { return "size" }

func (s *size) Set(text string) error {
	n, err := bytesize.Parse(text)
	*s = size(n)
	return err
}

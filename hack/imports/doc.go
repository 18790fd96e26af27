// Package imports holds no code: its test reads every Go file's imports, and a few calls, and keeps the rules of who may use whom.
// docs/design/imports.md gives the reasons.
package imports

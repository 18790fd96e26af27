// Package chart is what the Helm chart is made and tested with: it renders charts/rowan as Helm does, by Helm's own packages, and makes from it what
// nobody is to write by hand (gen):
//
//   - charts/rowan/README.md and values.schema.json, from the comments in values.yaml;
//   - charts/rowan/files, the custom resource definitions, from pkg/apis/v1alpha1 and the external-snapshotter's client module;
//   - deploy/rowan.yaml and deploy/poolset.yaml, for those without Helm.
//
// Contract: values.yaml has a comment for every value that does not stand in an entry of a list; a line `# @schema {…}` in it is merged into that value's
// JSON schema and is not in the README. Limits: it knows nothing of Helm hooks but their annotation, and its `lookup` finds nothing.
package chart

//go:generate go run ./gen ../..

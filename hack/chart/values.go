package chart

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"go.yaml.in/yaml/v3"
)

// schemaMark begins a line of a comment that belongs to the schema.
const schemaMark = "@schema "

// Value is one value of values.yaml.
type Value struct {
	Name     string // the last part of the path
	Comment  string // "" in what stands in a list
	Schema   map[string]any
	Default  any
	Children []Value // of a mapping that is not empty
}

// ParseValues reads values.yaml with its comments.
func ParseValues(text []byte) ([]Value, error) {
	var doc yaml.Node
	if err := yaml.Unmarshal(text, &doc); err != nil {
		return nil, fmt.Errorf("read values: %w", err)
	}
	if len(doc.Content) != 1 || doc.Content[0].Kind != yaml.MappingNode {
		return nil, errors.New("read values: they are no mapping")
	}
	return parseMapping(doc.Content[0], "")
}

func parseMapping(node *yaml.Node, at string) ([]Value, error) {
	var values []Value
	var errs []error
	for i := 0; i < len(node.Content); i += 2 {
		v, err := parseValue(node.Content[i], node.Content[i+1], at)
		if err != nil {
			errs = append(errs, err)
		}
		values = append(values, v)
	}
	return values, errors.Join(errs...)
}

func parseValue(key, node *yaml.Node, at string) (Value, error) {
	v := Value{Name: key.Value}
	where := strings.TrimPrefix(at+"."+key.Value, ".")
	if err := node.Decode(&v.Default); err != nil {
		return v, fmt.Errorf("%s: %w", where, err)
	}
	var err error
	if v.Comment, v.Schema, err = splitComment(key.HeadComment); err != nil {
		return v, fmt.Errorf("%s: %w", where, err)
	}
	// An image's parts are said well enough by what they are part of; so are those of Kubernetes' own types.
	if v.Comment == "" && key.Value != "image" {
		return v, fmt.Errorf("%s: it has no comment: values.yaml describes every value", where)
	}
	if node.Kind == yaml.MappingNode && len(node.Content) > 0 && !kubernetesType(key.Value) {
		v.Children, err = parseMapping(node, where)
	}
	return v, err
}

// kubernetesType: what its fields are is said by Kubernetes.
func kubernetesType(name string) bool {
	switch name {
	case "resources", "nodeSelector", "affinity", "podLabels", "podAnnotations", "commonLabels", "labels":
		return true
	}
	return false
}

func splitComment(comment string) (text string, schema map[string]any, err error) {
	// What is set off by an empty line speaks of the file.
	paragraphs := strings.Split(comment, "\n\n")
	var words []string
	for line := range strings.Lines(paragraphs[len(paragraphs)-1]) {
		line = strings.TrimSpace(strings.TrimPrefix(strings.TrimSpace(line), "#"))
		rest, ok := strings.CutPrefix(line, schemaMark)
		if !ok {
			words = append(words, line)
			continue
		}
		if err := json.Unmarshal([]byte(rest), &schema); err != nil {
			return "", nil, fmt.Errorf("%s%s: %w", schemaMark, rest, err)
		}
	}
	return strings.Join(words, " "), schema, nil
}

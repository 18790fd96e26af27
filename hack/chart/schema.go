package chart

import (
	"bytes"
	"encoding/json"
	"fmt"
)

// Schema is values.schema.json: the types of the defaults, the comments as descriptions, and what the comments say in @schema. What is not in values.yaml
// is refused, so that a misspelt value is not silently nothing.
func Schema(values []Value) ([]byte, error) {
	s := object(values)
	s["$schema"] = "http://json-schema.org/draft-07/schema#"
	s["title"] = "Values of the chart rowan"
	// Helm hands these on to every chart.
	s["properties"].(map[string]any)["global"] = map[string]any{"type": "object"}
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetIndent("", "  ")
	e.SetEscapeHTML(false)
	if err := e.Encode(s); err != nil {
		return nil, fmt.Errorf("write the schema: %w", err)
	}
	return b.Bytes(), nil
}

func object(values []Value) map[string]any {
	properties := map[string]any{}
	for _, v := range values {
		properties[v.Name] = v.schema()
	}
	return map[string]any{"type": "object", "properties": properties, "additionalProperties": false}
}

func (v Value) schema() map[string]any {
	s := map[string]any{}
	switch v.Default.(type) {
	case map[string]any:
		s["type"] = "object"
		if len(v.Children) > 0 {
			s = object(v.Children)
		}
	case []any:
		s["type"] = "array"
	case bool:
		s["type"] = "boolean"
	case int:
		s["type"] = "integer"
	case string:
		s["type"] = "string"
	}
	if v.Comment != "" {
		s["description"] = v.Comment
	}
	for key, value := range v.Schema {
		s[key] = value
	}
	return s
}

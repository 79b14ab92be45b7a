"""Experiments: YAML files and `key=value` overrides, checked and frozen before anything starts."""

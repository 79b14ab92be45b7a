"""Experiments: YAML files and `key=value` overrides, checked and frozen before anything starts."""

from umbel.conf.errors import ExperimentError
from umbel.conf.load import experiment_names, load
from umbel.conf.schema import Experiment

__all__ = ["Experiment", "ExperimentError", "experiment_names", "load"]

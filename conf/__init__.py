"""Experiments: YAML files and `key=value` overrides, checked and frozen before anything starts."""

from conf.errors import ExperimentError
from conf.load import experiment_names, load
from conf.schema import Experiment

__all__ = ["Experiment", "ExperimentError", "experiment_names", "load"]

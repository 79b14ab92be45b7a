"""Data sets, found by name in `umbel.data.sets.registry`."""

"""Strategies, one file a paper; `umbel.strategies.registry` finds them by name."""

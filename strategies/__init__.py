"""Strategies, one file a paper; `strategies.registry` finds them by name."""

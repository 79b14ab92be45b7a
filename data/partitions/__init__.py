"""Schemes that cut the training pool into clients; `umbel.data.partition` finds them by name."""

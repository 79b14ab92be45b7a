"""Pictures of runs, metrics, data and the inside of models."""

"""Baselines for sequences of tasks, one file each; FOT, which is larger, has a folder of its own."""

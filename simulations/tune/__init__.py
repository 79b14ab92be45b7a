"""Tuning: equally many trials for each contender of a comparison, chosen by validation data."""

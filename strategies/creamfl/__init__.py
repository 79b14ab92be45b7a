"""CreamFL: `method` reads like the paper; `representations` are what travels."""

from umbel.strategies.creamfl.method import Config, CreamFL, State, aggregate, inter_contrast, intra_contrast

__all__ = ["Config", "CreamFL", "State", "aggregate", "inter_contrast", "intra_contrast"]

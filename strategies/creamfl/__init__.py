"""CreamFL: `method` reads like the paper; `contrasts` and `ensemble` are its mathematics, `representations` travel."""

from umbel.strategies.creamfl.contrasts import inter_contrast, intra_contrast
from umbel.strategies.creamfl.ensemble import aggregate
from umbel.strategies.creamfl.method import Config, CreamFL, State

__all__ = ["Config", "CreamFL", "State", "aggregate", "inter_contrast", "intra_contrast"]

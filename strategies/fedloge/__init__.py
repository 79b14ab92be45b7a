"""FedLoGe: `method` reads like the paper; `frames` and `heads` are its mathematics."""

from umbel.strategies.fedloge.frames import simplex_etf, sparse_etf
from umbel.strategies.fedloge.heads import personal_logits, realign_global, realign_personal
from umbel.strategies.fedloge.method import Config, FedLoGe, State

__all__ = [
    "Config",
    "FedLoGe",
    "State",
    "personal_logits",
    "realign_global",
    "realign_personal",
    "simplex_etf",
    "sparse_etf",
]

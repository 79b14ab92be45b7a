"""FedLoGe: `method` reads like the paper."""

from umbel.strategies.fedloge.method import (
    Config,
    FedLoGe,
    State,
    personal_logits,
    realign_global,
    realign_personal,
    simplex_etf,
    sparse_etf,
)

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

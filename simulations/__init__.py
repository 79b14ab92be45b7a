"""Engines that run both apps on this machine, the command line, comparison and report.

from simulations import run

result = run("digits", "strategy.name=fedprox", "strategy.mu=0.1")
print(result.summary["metrics"]["test/accuracy"])
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from simulations.api import RunResult, resume, run

__all__ = ["RunResult", "resume", "run"]


def __getattr__(name: str) -> Any:
    # Lazy, so that `umbel --help` need not load torch and Flower.
    if name in __all__:
        from simulations import api

        return getattr(api, name)
    raise AttributeError(f"module 'simulations' has no attribute {name!r}")

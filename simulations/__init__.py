"""Engines that run both apps on this machine, the command line, comparison and report.

from simulations import run

result = run("digits", "strategy.name=fedprox", "strategy.mu=0.1")
print(result.summary["metrics"]["test/accuracy"])
"""

from simulations.api import RunResult, resume, run

__all__ = ["RunResult", "resume", "run"]

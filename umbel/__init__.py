"""Federated learning for image models that mix convolution and attention.

import umbel

result = umbel.run("digits", "strategy.name=fedprox", "strategy.mu=0.1")
print(result.summary["metrics"]["test/accuracy"])

All names below are loaded when they are first used: `import umbel` itself loads nothing heavy.
"""

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

# In a checkout, and in the bundle that Flower ships, the packages lie beside this one; in an installed wheel within it.
if not (Path(__file__).parent / "core").is_dir():
    __path__ = [str(Path(__file__).resolve().parent.parent)]

if TYPE_CHECKING:
    from umbel import data, models
    from umbel.conf.load import load
    from umbel.conf.schema import Experiment
    from umbel.server.listener import Listener
    from umbel.simulations.api import RunResult, resume, run
    from umbel.simulations.compare.carry_out import compare
    from umbel.simulations.compare.go_through import compare_settings
    from umbel.simulations.explain.look import explain
    from umbel.simulations.report.page import report
    from umbel.simulations.trackers.base import TrackedRun, Tracker
    from umbel.simulations.tune.carry_out import tune
    from umbel.simulations.use.evaluate import evaluate
    from umbel.simulations.use.export import export
    from umbel.simulations.use.predict import predict
    from umbel.simulations.use.trained import Trained, load_model
    from umbel.strategies.base import Phase, Strategy

# name -> where it is defined; a package is its own place
_PLACES = {
    "Experiment": "umbel.conf.schema",
    "Listener": "umbel.server.listener",
    "Phase": "umbel.strategies.base",
    "RunResult": "umbel.simulations.api",
    "Strategy": "umbel.strategies.base",
    "TrackedRun": "umbel.simulations.trackers.base",
    "Tracker": "umbel.simulations.trackers.base",
    "Trained": "umbel.simulations.use.trained",
    "compare": "umbel.simulations.compare.carry_out",
    "compare_settings": "umbel.simulations.compare.go_through",
    "data": "",
    "evaluate": "umbel.simulations.use.evaluate",
    "explain": "umbel.simulations.explain.look",
    "export": "umbel.simulations.use.export",
    "load": "umbel.conf.load",
    "load_model": "umbel.simulations.use.trained",
    "models": "",
    "predict": "umbel.simulations.use.predict",
    "report": "umbel.simulations.report.page",
    "resume": "umbel.simulations.api",
    "run": "umbel.simulations.api",
    "tune": "umbel.simulations.tune.carry_out",
}

__all__ = [
    "Experiment",
    "Listener",
    "Phase",
    "RunResult",
    "Strategy",
    "TrackedRun",
    "Tracker",
    "Trained",
    "compare",
    "compare_settings",
    "data",
    "evaluate",
    "explain",
    "export",
    "load",
    "load_model",
    "models",
    "predict",
    "report",
    "resume",
    "run",
    "tune",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'umbel' has no attribute {name!r}")
    place = _PLACES[name]
    return getattr(import_module(place), name) if place else import_module(f"umbel.{name}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

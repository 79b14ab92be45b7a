"""Proposals of values for one contender, by Optuna's tree-structured Parzen estimator.

J. Bergstra, R. Bardenet, Y. Bengio, B. Kégl: Algorithms for Hyper-Parameter Optimization, NeurIPS 2011. The first ten
proposals are drawn, those after them go by the values told so far. All of it is a function of the seed and of what
was told, in its order: whoever tells the same again is asked the same, so that nothing has to be stored.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from typing import TYPE_CHECKING

from umbel.core.refusal import Refusal
from umbel.simulations.tune.space import Dimension

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import Trial

_NEEDED = "optuna>=5,<6"


def check_installed() -> None:
    """Refuse where Optuna is not installed."""
    if find_spec("optuna") is None:
        raise Refusal("umbel tune searches by Optuna, which is not installed.", remedy=f"pip install '{_NEEDED}'")


def version() -> str:
    """Return the version of Optuna, which is part of what fixes the trials."""
    import optuna

    return str(optuna.__version__)


class Search:
    """Proposes values and is told what came of them, in turn.

    Args:
        dimensions: What is searched.
        seed: Seed of the proposals.
        is_more: Whether more is better.
        first: The first proposal; None draws it.
    """

    def __init__(
        self, dimensions: Sequence[Dimension], seed: int, is_more: bool, first: Mapping[str, str] | None = None
    ) -> None:
        import optuna

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._dimensions, self._first = dimensions, first
        self._study = optuna.create_study(
            direction="maximize" if is_more else "minimize", sampler=optuna.samplers.TPESampler(seed=seed)
        )
        if first is not None:
            self._study.enqueue_trial({each.key: _raw(each, first[each.key]) for each in dimensions})
        self._trial: Trial | None = None

    def ask(self) -> dict[str, str]:
        """Return the next values by key, as overrides have them."""
        self._trial = self._study.ask({each.key: _distribution(each) for each in self._dimensions})
        if self._trial.number == 0 and self._first is not None:
            return dict(self._first)  # as they were written, with all digits
        return {each.key: each.written(self._trial.params[each.key]) for each in self._dimensions}

    def tell(self, value: float | None) -> None:
        """Say what came of the last proposal; None for one that came to nothing, which counts as worse than all."""
        from optuna.trial import TrialState

        assert self._trial is not None, "ask comes first"
        if value is None:
            self._study.tell(self._trial, state=TrialState.PRUNED)
        else:
            self._study.tell(self._trial, value)


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if dimension.options:
        return CategoricalDistribution(dimension.options)
    if dimension.is_whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.is_log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.is_log)


def _raw(dimension: Dimension, text: str) -> str | int | float:
    if dimension.options:
        return text
    return int(text) if dimension.is_whole else float(text)

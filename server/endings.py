"""Why a run ends before its last round: it has what it was for, learns no more, or has cost what it may."""

from __future__ import annotations

import math
from dataclasses import replace

from umbel.conf.schema import RunConfig
from umbel.core.schedule import parse_budget, parse_until
from umbel.server.checkpoint import Progress
from umbel.server.errors import RunStoppedError


def ended(run: RunConfig, progress: Progress) -> str:
    """Say why a run ends after a round that is not its last; "" where it goes on."""
    round_ = progress.round
    if round_ >= run.rounds:
        return ""
    if text := over_budget(run, progress):
        return text
    if run.until and parse_until(run.until).is_met(progress.last_metrics):
        return f"Round {round_} meets run.until={run.until}: the run ends."
    if run.patience and progress.since_best >= run.patience:
        return (
            f"No evaluation was better than that of round {progress.best_round} for run.patience={run.patience}: "
            f"the run ends after round {round_}."
        )
    return ""


def again(run: RunConfig, progress: Progress) -> str:
    """Say why a run that goes on has ended already, by what it is told now; "" where it goes on.

    A budget counts only where the run had ended: else its last round has been neither finished nor, perhaps, evaluated,
    and the next one will.
    """
    return ended(run if progress.ended else replace(run, budget=""), progress)


def over_budget(run: RunConfig, progress: Progress) -> str:
    """Say that a run ends after a round that is not its last, having cost what it may; "" where it goes on."""
    round_ = progress.round
    if not run.budget or not 0 < round_ < run.rounds:
        return ""
    budget = parse_budget(run.budget)
    cost = progress.cost(budget.cost)
    if math.isnan(cost):
        raise RunStoppedError(
            f"run.budget={run.budget}: what trains here is no model that umbel built, so that its operations are not "
            "known. Give steps, examples, bytes or seconds."
        )
    if not budget.is_spent(cost, round_):
        return ""
    return f"Round {round_} comes nearest to run.budget={run.budget}: the run ends."

"""What a run's model file says of itself (`umbel.models.card`)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from umbel.data.types import Examples
from umbel.models import card
from umbel.models.card import Card
from umbel.server.evaluation import MAIN
from umbel.server.session import Session
from umbel.strategies.base import Predictor, Strategy

_COMPARED = 8  # examples on which what is saved is held against what was evaluated
_PER_CENT = 0.01


def describe(session: Session, state: Any, whole: Mapping[str, Tensor]) -> Card:
    """Return what a run's model is.

    Args:
        session: The run.
        state: The strategy's last State.
        whole: The model's whole state, which is saved.
    """
    data, experiment = session.data, session.experiment
    channels, side = data.picture_shape
    return Card(
        version=card.version(),
        strategy=experiment.strategy.name,
        model=experiment.model.name,
        sizes=dict(experiment.model.sizes),
        operators=dict(experiment.model.operators),
        norm=experiment.model.norm,
        seed=experiment.run.seed,
        image_size=data.image_size,
        in_channels=data.in_channels,
        classes=data.class_names,
        mean=data.mean,
        std=data.std,
        encoder=experiment.data.encoder,
        encoder_size=experiment.data.encoder_size,
        picture_size=side,
        picture_channels=channels,
        white=experiment.data.options.get("white", 0),
        tasks=tuple(data.task_of_class.tolist()) if experiment.data.heads == "per_task" else (),
        unusable=_unusable(session, state, whole),
        remarks=_remarks(session),
        weights_sha256="",
    )


def _unusable(session: Session, state: Any, whole: Mapping[str, Tensor]) -> str:
    """Return why the saved weights alone predict nothing, or not what was evaluated; empty where they do."""
    strategy, name = session.strategy, session.experiment.strategy.name
    if strategy.own_model:
        return f"Under strategy.name={name} the server's model is one of the strategy's own, not model.name."
    first = session.build_model().state_dict()
    if not session.experiment.model.init and all(torch.equal(whole[key], first[key]) for key in whole):
        return f"These weights were never trained: under strategy.name={name} the server's model stays as it began."
    if type(strategy).predictors is Strategy.predictors or _is_evaluated(session, state, whole):
        return ""
    return f"What strategy.name={name} evaluates is not the model that it saves."


def _is_evaluated(session: Session, state: Any, whole: Mapping[str, Tensor]) -> bool:
    """Say whether the saved model gives what the strategy's main predictor gives, on a few examples of the server."""
    context = session.context(session.experiment.run.rounds)
    predictor = session.strategy.predictors(state, context).get(MAIN)
    if predictor is None or predictor.family != Predictor.family or predictor.reads != Predictor.reads:
        return False
    images, _ = session.prepare(_few(session))
    if not len(images):
        return True
    with torch.no_grad():
        expected, given = predictor.predict(images).double(), context.model(whole)(images).double()
    largest = expected.abs().max().clamp_min(torch.finfo(torch.float32).tiny)
    return bool((expected - given).abs().max() <= _PER_CENT * largest)


def _few(session: Session) -> Examples:
    server = session.data.server
    examples = server.validation if len(server.validation) and not len(server.test) else server.test
    return examples.take(torch.arange(min(_COMPARED, len(examples))))


def _remarks(session: Session) -> tuple[str, ...]:
    """Return what whoever predicts with the saved model should know."""
    if parts := session.strategy.local_parts:
        whose = f"under strategy.name={session.experiment.strategy.name} it stays with each client, and never travels."
        return (f"Its {', '.join(parts)} is as it began: {whose}",)
    if session.local_names:
        return (
            "Its batch norm is as it began: under model.norm=local each client has its own, which never left it. "
            "Accuracy says little.",
        )
    return ()

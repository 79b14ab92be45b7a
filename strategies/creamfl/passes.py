"""Passes of the training loop over private and public data, and how the server trains."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

from torch import Tensor

from umbel.core import training
from umbel.core.training import LocalConfig, num_processed
from umbel.models.pair import Reader
from umbel.strategies.base import ClientContext, ServerContext

if TYPE_CHECKING:
    from umbel.strategies.creamfl.method import Config

_PUBLIC_BATCH = 512


def server_training(config: Config, server: ServerContext, epochs: int = 0) -> LocalConfig:
    """Return how the server trains in this round, for so many epochs; 0 takes its own."""
    share = (server.round - 1) / server.num_rounds
    return LocalConfig(
        epochs=epochs or config.server_epochs,
        batch_size=config.server_batch_size,
        optimizer=config.server_optimizer,
        lr=config.server_lr * ((1 + math.cos(math.pi * share)) / 2 if config.server_cosine else 1.0),
        weight_decay=config.server_weight_decay,
        clip_norm=config.server_clip_norm,
        precision=server.local.precision,
    )


def by_turns(
    client: ClientContext,
    private: Reader,
    targets: Tensor,
    private_loss: training.Loss,
    public: Reader,
    contrast: training.Loss | None,
) -> float:
    """Do the local epochs, each a pass over the private data and one over the public; return the private loss.

    Args:
        client: How to train, and its generators.
        private: What reads the private data.
        targets: Of its rows.
        private_loss: Of both.
        public: What reads the public data; a row's number is its target.
        contrast: The loss of the public pass; None leaves it out.
    """
    batches, noise = client.rng("batches"), client.rng("noise")
    losses: list[float] = []
    moments: dict[str, Tensor] = {}  # one optimiser for both passes; begun anew, Adam would forget gamma
    public_batch = client.local.batch_size or _PUBLIC_BATCH  # all of P against all of P is too much at once
    steps, budget = 0, client.local.max_steps
    while len(losses) < client.local.epochs or (not client.local.epochs and steps < budget):
        for kind, loss in ((private, private_loss), (public, contrast)):
            if loss is None or (budget and steps >= budget):
                continue
            numbers, labels = kind.numbers, targets if kind is private else kind.numbers
            once = replace(client.local, epochs=1, max_steps=budget - steps if budget else 0)
            if kind is public:
                once = replace(once, batch_size=public_batch)
            done = training.train(
                kind,
                numbers,
                labels,
                once,
                batches=batches,
                noise=noise,
                round_=client.round,
                loss=loss,
                moments=moments,
            )
            moments = dict(done.moments)
            steps += done.num_steps
            if kind is private:
                losses.append(done.loss)
        if budget and steps >= budget:
            break
    return sum(losses) / len(losses)


def num_by_turns(local: LocalConfig, num_private: int, num_public: int) -> int:
    """Return how many rows `by_turns` goes through, of so many private and, in each pass, public ones."""
    total, epochs, steps, budget = 0, 0, 0, local.max_steps
    while (num_private or num_public) and (epochs < local.epochs or (not local.epochs and steps < budget)):
        for rows, batch_size in ((num_private, local.batch_size), (num_public, local.batch_size or _PUBLIC_BATCH)):
            if not rows or (budget and steps >= budget):
                continue
            once = replace(local, epochs=1, batch_size=batch_size, max_steps=budget - steps if budget else 0)
            total += num_processed(once, rows)
            in_pass = math.ceil(rows / (batch_size or rows))
            steps += min(in_pass, once.max_steps or in_pass)
        epochs += 1
        if budget and steps >= budget:
            break
    return total

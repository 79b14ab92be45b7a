"""A client as a strategy's client half sees it, for tests that call that half by hand."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from umbel.core.training import LocalConfig
from umbel.data.types import Examples
from umbel.models.base import Model
from umbel.models.weights import load_state, shared_state
from umbel.strategies.base import ClientContext


def client_context(
    train: Examples, num_classes: int, model: Model | None = None, held_out: Examples | None = None, **changes: Any
) -> ClientContext:
    """Return client 0 in round 1 of seed 0, on the CPU, without memory, augmentation or normalisation.

    Args:
        train: Its training examples.
        num_classes: Number of classes.
        model: Takes the state of a tree in place; without one, a test fails that asks for a model.
        held_out: Its validation and test examples; without them, those of training.
        changes: Other fields of `ClientContext`, in place of these.
    """
    held_out = train if held_out is None else held_out

    def load_model(tree: Mapping[str, Tensor]) -> Model:
        if model is None:
            pytest.fail("no model is needed")
        load_state(model, tree)
        return model

    client = ClientContext(
        id=0,
        seed=0,
        round=1,
        phase="train",
        local=LocalConfig(device="cpu"),
        train_data=train,
        validation_data=held_out,
        test_data=held_out,
        device=torch.device("cpu"),
        load_model=load_model,
        weights_of=shared_state,
        prepare=lambda examples: (examples.images, examples.labels),
        augment=None,
        num_classes=num_classes,
        memory=None,
        remember=lambda record: None,
    )
    return replace(client, **changes)

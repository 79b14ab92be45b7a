"""Build a model as an experiment has it: a model of the zoo, its operators, then its rule for norms."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from umbel.models import norm, operators, registry
from umbel.models.base import Model


def assemble(
    name: str,
    num_classes: int,
    image_size: int,
    in_channels: int,
    *,
    sizes: Mapping[str, Any],
    operators_: Mapping[str, Any],
    norm_rule: str,
) -> Model:
    """Build a model with fresh weights from torch's global generator, which the caller seeds.

    Args:
        name: The key `model.name`.
        num_classes: C, the number of logits.
        image_size: Side of the images in pixels.
        in_channels: I.
        sizes: The key `model.sizes`.
        operators_: The key `model.operators`.
        norm_rule: The key `model.norm`.

    Raises:
        Refusal: As `umbel.models.build`, or an operator does not fit.
    """
    model = registry.build(name, num_classes, image_size, in_channels, **sizes)
    if operators_:
        said = [name, num_classes, image_size, in_channels, dict(sizes), dict(operators_)]
        model = registry.specified(operators.apply(model, operators_), said)
    return norm.replace_batch_norm(model, norm.GROUPS[norm_rule]) if norm_rule in norm.GROUPS else model

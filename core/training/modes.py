"""Ways of training that are faster on some machines and have bits of their own: which of them a run has.

What is left to `auto` is decided by a rule on the model and the kind of device, not by a measurement, so that each
process of a run, and a resume on another machine, decides alike.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import torch
from torch import nn

from umbel.core.training.config import LocalConfig
from umbel.core.training.loop import Constrained
from umbel.core.training.steps import UnfitError, form_of_model

_CHANNELS = 16  # that a convolution reads; over fewer, as in a stem, another order of the numbers is no gain
_AT_ONCE = 8  # clients on a GPU, where `auto` may choose


def uses_channels_last(config: LocalConfig, model: nn.Module) -> bool:
    """Say whether images and weights are kept in the memory order [B, H, W, C].

    `auto` does so where a convolution of the plain kind, larger than a point, reads 16 channels or more.
    """
    if config.channels_last != "auto":
        return config.channels_last
    return any(
        isinstance(module, nn.Conv2d)
        and module.groups == 1
        and max(module.kernel_size) > 1
        and module.in_channels >= _CHANNELS
        for module in model.modules()
    )


def num_together(config: LocalConfig, device: torch.device) -> int:
    """Return how many clients may train at once; `auto` is one, and more on a CUDA device."""
    if config.together != "auto":
        return config.together
    return _AT_ONCE if device.type == "cuda" else 1


def named(config: LocalConfig, model: nn.Module, device: torch.device) -> dict[str, bool | int | str]:
    """Return the modes of a run as they are decided."""
    return {
        "channels_last": uses_channels_last(config, model),
        "compile": config.compile,
        "together": num_together(config, device),
    }


def notices(config: LocalConfig, model: nn.Module, device: torch.device) -> Iterator[str]:
    """Say which modes were asked for and cannot be had, as far as it is known before a step."""
    name = type(model).__name__
    if config.compile != "none" and device.type == "cpu" and not shutil.which(os.environ.get("CXX", "g++")):
        yield f"client.compile={config.compile}: this machine has no C++ compiler ($CXX or g++)."
    if config.compile == "step":
        try:
            form_of_model(model)
        except UnfitError as error:
            yield f"client.compile=step: {name} trains without, for {error}."
    if num_together(config, device) > 1 and any(isinstance(each, Constrained) for each in model.modules()):
        yield f"client.together={config.together}: {name} trains one by one; its parameters are kept within bounds."

"""Gradient checkpointing: blocks that keep their input alone and compute the rest again in the backward pass.

Source: Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost" (arXiv 1604.06174). The gradients are the
same to the bit: random numbers are drawn again from the same state, and batch norm counts a batch once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from umbel.core.refusal import Refusal
from umbel.models.base import Block, Model


def checkpoint_blocks(model: Model) -> Model:
    """Let each block of `model` forget its activations until the backward pass, in place, and return `model`.

    A block within a block is left to the outer one. Evaluation is not changed.

    Raises:
        Refusal: The model has no blocks.
    """
    outer: list[Block] = []

    def walk(module: nn.Module) -> None:
        for child in module.children():
            if isinstance(child, Block):
                outer.append(child)
            else:
                walk(child)

    walk(model)
    if not outer:
        raise Refusal(
            f"model.checkpoint: {type(model).__name__} has no blocks (models.base.Block) to compute again.",
            key="model.checkpoint",
            remedy="Say false.",
        )
    for block in {id(block): block for block in outer}.values():
        block.forward = partial(_recomputed, block, block.forward)
    return model


def _recomputed(block: Block, forward: Callable[..., Any], *inputs: Any) -> Any:
    if not (block.training and torch.is_grad_enabled()):
        return forward(*inputs)
    return checkpoint(forward, *inputs, use_reentrant=False, context_fn=partial(_contexts, block))


def _contexts(block: Block) -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
    return nullcontext(), _still_batch_norm(block)


@contextmanager
def _still_batch_norm(block: Block) -> Iterator[None]:
    """Keep running statistics and counters as they are: the first pass has counted this batch."""
    norms = [module for module in block.modules() if isinstance(module, _BatchNorm) and module.track_running_stats]
    kept = [{name: buffer.clone() for name, buffer in norm.named_buffers()} for norm in norms]
    try:
        yield
    finally:
        for norm, buffers in zip(norms, kept, strict=True):
            for name, buffer in norm.named_buffers():
                buffer.data.copy_(buffers[name])  # not `copy_`: what the backward pass saved must not count as changed

"""What goes into a model's linear layers and convolutions, by the name of the weight, as columns.

Calls of `linear` and `conv` are watched rather than modules: a layer is known by its weight, so that attention's
packed projection, a functional call and a weight that two modules share are all seen.

Legend: B batch, N columns, L positions, D inputs of one output value: features of a linear layer, channels of a
group times kernel size of a convolution. Columns are sample-major, then row-major over positions; rows of a
convolution are in the order (channel, kernel row, kernel column), that of its weight.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

Take = Callable[[str, Tensor], None]

_CONVOLUTIONS = {F.conv1d: 1, F.conv2d: 2, F.conv3d: 3}
_CHUNK_BYTES = 64 << 20


class _Watch(TorchFunctionMode):
    """Hands the inputs of every linear map and convolution with a known weight to `take`."""

    def __init__(self, names: Mapping[int, str], take: Take, chunk_bytes: int) -> None:
        super().__init__()
        self._names, self._take, self._chunk_bytes = names, take, chunk_bytes

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.linear:
            self._linear(*args, **kwargs)
        elif func is F.multi_head_attention_forward:
            self._attention(*args, **kwargs)
        elif func in _CONVOLUTIONS:
            self._convolution(_CONVOLUTIONS[func], *args, **kwargs)
        return func(*args, **kwargs)

    def _name(self, weight: Tensor) -> str | None:
        """Return the name of a weight, also of a part of a packed one."""
        with torch._C.DisableTorchFunction():
            name = self._names.get(id(weight))
            base = weight._base
        return name if name is not None or base is None else self._names.get(id(base))

    def _linear(self, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> None:
        name = self._name(weight)
        if name is not None:
            with torch._C.DisableTorchFunction():
                self._take(name, input.detach().reshape(-1, input.shape[-1]).T)

    def _attention(self, *args: Any, **kwargs: Any) -> None:
        """Take torch's own attention apart: it hides its linear maps from whoever watches."""
        call = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
        call.apply_defaults()
        given = call.arguments
        tokens = [given[which].detach() for which in ("query", "key", "value")]  # [L, B, E], or [L, E] unbatched
        rows = [t.transpose(0, 1).reshape(-1, t.shape[-1]) if t.ndim == 3 else t for t in tokens]
        if given["use_separate_proj_weight"]:
            for which, columns in zip(("q", "k", "v"), rows, strict=True):
                self._linear(columns, given[f"{which}_proj_weight"])
        else:
            same = given["query"] is given["key"] and given["key"] is given["value"]
            self._linear(rows[0] if same else torch.cat(rows), given["in_proj_weight"])
        with torch._C.DisableTorchFunction():
            weight = given["out_proj_weight"]
            # With the identity in place of the output projection, what comes out is what goes into it.
            given |= {
                "out_proj_weight": torch.eye(len(weight)).to(weight),
                "out_proj_bias": torch.zeros_like(weight[0]),
            }
            mixed = F.multi_head_attention_forward(*call.args, **call.kwargs)[0]
            mixed = mixed.transpose(0, 1).reshape(-1, mixed.shape[-1]) if mixed.ndim == 3 else mixed
        self._linear(mixed, weight)

    def _convolution(
        self,
        spatial: int,
        input: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        stride: Any = 1,
        padding: Any = 0,
        dilation: Any = 1,
        groups: int = 1,
    ) -> None:
        name = self._name(weight)
        if name is None:
            return
        with torch._C.DisableTorchFunction():
            batch = input.detach()
            batch = batch if batch.ndim == spatial + 2 else batch.unsqueeze(0)
            kernel = tuple(weight.shape[2:])
            steps, gaps = _each(stride, spatial), _each(dilation, spatial)
            margins = _margins(padding, kernel, gaps)
            positions = 1
            for size, side, step, gap, (low, high) in zip(batch.shape[2:], kernel, steps, gaps, margins, strict=True):
                positions *= (size + low + high - gap * (side - 1) - 1) // step + 1
            column_bytes = weight[0].numel() * groups * batch.element_size()
            at_once = max(1, self._chunk_bytes // max(1, positions * column_bytes))
            for part in torch.split(batch, at_once):
                self._take(name, _patches(part, kernel, steps, margins, gaps, groups))


def _each(value: Any, spatial: int) -> tuple[int, ...]:
    return (value,) * spatial if isinstance(value, int) else tuple(value) * (spatial if len(value) == 1 else 1)


def _margins(padding: Any, kernel: tuple[int, ...], gaps: tuple[int, ...]) -> list[tuple[int, int]]:
    """Return zeros before and after, in each dimension."""
    if padding == "valid":
        return [(0, 0)] * len(kernel)
    if padding == "same":
        total = [gap * (side - 1) for side, gap in zip(kernel, gaps, strict=True)]
        return [(t // 2, t - t // 2) for t in total]
    return [(p, p) for p in _each(padding, len(kernel))]


def _patches(
    batch: Tensor,
    kernel: tuple[int, ...],
    stride: tuple[int, ...],
    margins: list[tuple[int, int]],
    dilation: tuple[int, ...],
    groups: int,
) -> Tensor:
    """Return what a convolution sees, [D, N], or [groups, D, N] where it has more than one group."""
    padded = F.pad(batch, [side for pair in reversed(margins) for side in pair])
    for dimension, (side, step, gap) in enumerate(zip(kernel, stride, dilation, strict=True), start=2):
        padded = padded.unfold(dimension, gap * (side - 1) + 1, step)[..., ::gap]
    spatial = len(kernel)
    # [B, C, positions ..., kernel ...] -> [groups, C / groups, kernel ..., B, positions ...]
    grouped = torch.unflatten(padded, 1, (groups, -1))
    order = [1, 2, *range(3 + spatial, 3 + 2 * spatial), 0, *range(3, 3 + spatial)]
    columns = grouped.permute(order).flatten(2 + spatial).flatten(1, 1 + spatial)
    return columns[0] if groups == 1 else columns


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put a model into evaluation mode and back, and keep attention off its fused path, which cannot be watched."""
    modes = {module: module.training for module in model.modules()}
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)
        for module, training in modes.items():
            module.training = training


@torch.no_grad()
def stream_inputs(model: nn.Module, batch: Tensor, take: Take, chunk_bytes: int = _CHUNK_BYTES) -> None:
    """Run a batch in evaluation mode and hand over each layer's inputs, a part at a time.

    Args:
        model: Its mode is as before afterwards.
        batch: [B, ...].
        take: Called with a parameter's name and columns [D, n], or [groups, D, n]; a layer's parts come in order.
        chunk_bytes: Patches of a convolution that exist at once, in whole samples.
    """
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    with evaluating(model), _Watch(names, take, chunk_bytes):
        model(batch)


def layer_inputs(model: nn.Module, batch: Tensor) -> dict[str, Tensor]:
    """Return each layer's inputs on a batch, by the name of its weight: [D, N], or [groups, D, N]."""
    parts: dict[str, list[Tensor]] = {}
    stream_inputs(model, batch, lambda name, columns: parts.setdefault(name, []).append(columns.clone()))
    return {name: torch.cat(pieces, dim=-1) for name, pieces in parts.items()}

"""What the attention and the gates of a model look at, for any model, by watching calls.

Calls of torch's attention, softmax and sigmoid are watched, as `umbel.models.inputs` watches linear layers, together
with the modules that are running. Read as maps are:

* attention, `F.scaled_dot_product_attention` and `F.multi_head_attention_forward`, and a softmax over its last axis
  that a matrix product multiplies with values as it is. The map is the attention that each place receives, the mean
  over heads and queries; where there is a class token, what the first query, which is the token, gives to each place.
* spatial gates: a sigmoid with one number a place, or two (CAS-ViT's, for queries and for keys; their mean is taken).

Keys are places when their number, without a class token, is that of a square map: the one around them, or that one
shrunk by a whole number. Around them is the map that the nearest block was given, [B, C, S, S], [B, S, S, C] or frames
[B, C, T, S, S] (what a place receives is then summed over frames), or its tokens [B, N, C]. Attention within windows
and grids is put together for GC ViT, MaxViT and FIT.

Left out, and returned by `watch_attention` with the reason: keys that are slots or latents (GLNet, FIT: what gathers
them from the places is a map) or chosen tokens (UniFormer-XXS), TransNeXt's softmax over neighbours and pooled keys
together, unknown windows, products by einsum, maps of one place.

A map lies on what the model's blocks see. Where a model pads its images (GC ViT, MaxViT, FIT), that is the padded one.

Shapes: B images, G groups (images times windows), A heads, Q queries, K keys, S side of a map, N tokens, C channels, T
frames, E channels of a head.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from umbel.models.base import Block
from umbel.models.convit import GatedPositionalAttention
from umbel.models.fit import SuperBlock
from umbel.models.gcvit import GCViTBlock
from umbel.models.glnet import GLMix
from umbel.models.inputs import evaluating
from umbel.models.layers import from_windows, no_autocast
from umbel.models.maxvit import AxisAttention, from_grid
from umbel.models.slow_fast import SlowFastBlock

_SOFTMAXES = (torch.softmax, Tensor.softmax, F.softmax)
_SIGMOIDS = (torch.sigmoid, Tensor.sigmoid, F.sigmoid, torch.special.expit)
_PRODUCTS = (torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.bmm, Tensor.bmm)
_SMALLEST = 2  # one place has nothing to say about places
_GATE_CHANNELS = 2


@dataclass(frozen=True)
class AttentionMap:
    """Where one call looks.

    Attributes:
        name: The innermost module that was running; it has several maps if it makes several calls.
        kind: `attention`; `class_token`, of the class token alone; `positional`, the same for all images; `windows` or
            `grid`, within which the attention is; `gate`.
        map: [B, S, S], 0 or more. Attention sums to 1 over the places of an image, less what the class token receives;
            a gate is from 0 to 1 at each place.
    """

    name: str
    kind: str
    map: Tensor

    @property
    def side(self) -> int:
        """S."""
        return int(self.map.shape[-1])


@dataclass(frozen=True)
class LeftOut:
    """A call that is no map over places.

    Attributes:
        name: The innermost module that was running.
        why: The reason.
    """

    name: str
    why: str


@dataclass(frozen=True)
class _Running:
    """A module that is running: its name, itself and the shape of its first tensor."""

    name: str
    module: nn.Module
    shape: tuple[int, ...]


@dataclass(frozen=True)
class _Windows:
    """How the groups of an image were cut from a map of `side`."""

    kind: str
    side: int
    join: Callable[[Tensor, int, int], Tensor]


def attention_weights(
    query: Tensor,
    key: Tensor,
    value: Tensor | None = None,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """Return softmax(query key' scale + mask), [..., Q, K], in float32 or more.

    Arguments are those of `F.scaled_dot_product_attention`; `value` and `dropout_p` are not used.
    """
    dtype = torch.promote_types(query.dtype, torch.float32)
    with no_autocast(query):
        if enable_gqa:
            key = key.repeat_interleave(query.shape[-3] // key.shape[-3], dim=-3)
        scores = query.to(dtype) @ key.to(dtype).transpose(-2, -1)
        scores = scores * (query.shape[-1] ** -0.5 if scale is None else scale)
        if is_causal:
            attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool, device=scores.device).tril()
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            scores = scores.masked_fill(~attn_mask, -torch.inf)
        elif attn_mask is not None:
            scores = scores + attn_mask.to(dtype)
        return scores.softmax(dim=-1)


class _Watch(TorchFunctionMode):
    """Collects the maps of one forward pass of `batch` images."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.running: list[_Running] = []
        self.maps: list[AttentionMap] = []
        self.left_out: list[LeftOut] = []
        self._batch = batch
        # Softmaxes that nothing was multiplied with so far; they are kept, so that their id is not given to others.
        self._open: dict[int, tuple[Tensor, str]] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is F.scaled_dot_product_attention:
            self._attention(attention_weights(*args, **kwargs))
        elif func is F.multi_head_attention_forward:
            self._attention(_multi_head_weights(*args, **kwargs))
        elif func in _PRODUCTS and len(args) == 2 and id(args[0]) in self._open:
            self._product(*args)
        made = func(*args, **kwargs)
        if func in _SOFTMAXES and made.dim() >= 3:
            axis = kwargs.get("dim", args[1] if len(args) > 1 else None)
            if axis in (-1, made.dim() - 1):
                self._open[id(made)] = (made, self._name)
        elif func in _SIGMOIDS:
            self._gate(made)
        return made

    def close(self) -> None:
        """Note the softmaxes that were not seen to be attention."""
        why = "a softmax {} that is not multiplied with values as it is"
        self.left_out += [LeftOut(name, why.format(list(made.shape))) for made, name in self._open.values()]
        self._open.clear()

    @property
    def _name(self) -> str:
        return self.running[-1].name if self.running else ""

    def _product(self, weights: Tensor, values: Tensor) -> None:
        """Take a softmax that is multiplied with values [..., K, E], broadcast as the product does."""
        self._open.pop(id(weights))
        leading: torch.Size = torch.broadcast_shapes(weights.shape[:-2], values.shape[:-2])  # type: ignore[no-untyped-call]
        common = len(leading) > weights.dim() - 2 or leading[:1] != weights.shape[:1]
        self._attention(weights.expand(*leading, *weights.shape[-2:]), "positional" if common else "")

    def _attention(self, weights: Tensor, kind: str = "") -> None:
        """Note the map of attention [G, A, Q, K] or [G, Q, K], or why it is none."""
        windows = _windows(self.running)
        where = windows if isinstance(windows, str) else self._read(weights, kind, windows)
        if isinstance(where, str):
            self.left_out.append(LeftOut(self._name, where))
        else:
            self.maps.append(where)

    def _read(self, weights: Tensor, kind: str, windows: _Windows | None) -> AttentionMap | str:
        if weights.dim() < 3:
            return f"attention {list(weights.shape)} without a batch"
        groups, queries, keys = weights.shape[0], *weights.shape[-2:]
        weights = weights.to(torch.promote_types(weights.dtype, torch.float32)).reshape(groups, -1, queries, keys)
        if windows is not None:
            return self._joined(weights.mean(dim=(1, 2)), windows)
        if groups != self._batch:
            return f"attention of {groups} groups for {self._batch} images: their places are not known"
        around = _around(self.running, self._batch)
        place = None if around is None else _places(keys, *around)
        if place is None:
            return f"attention to {keys} keys, which are not the places of a square map"
        side, frames, class_token = place
        received = weights[:, :, 0].mean(dim=1)[:, 1:] if class_token else weights.mean(dim=(1, 2))
        received = received.reshape(groups, frames, side, side).sum(dim=1)
        return AttentionMap(self._name, kind or ("class_token" if class_token else "attention"), received)

    def _joined(self, received: Tensor, windows: _Windows) -> AttentionMap | str:
        """Put what is received within windows [G, K] together."""
        groups, keys = received.shape
        side, per_image = windows.side, groups // self._batch
        if groups % self._batch or per_image * keys != side**2 or isqrt(keys) ** 2 != keys or side < _SMALLEST:
            return f"attention to {keys} keys in {groups} groups, which are not windows of a {side} x {side} map"
        # Of all queries of the image, those of other windows give nothing to a place.
        cut = received.view(groups, isqrt(keys), isqrt(keys), 1) / per_image
        return AttentionMap(self._name, windows.kind, windows.join(cut, side, side)[..., 0])

    def _gate(self, made: Tensor) -> None:
        if made.dim() != 4 or made.shape[0] != self._batch:
            return
        _, second, third, last = made.shape
        if second <= _GATE_CHANNELS and third == last >= _SMALLEST:
            self.maps.append(AttentionMap(self._name, "gate", made.mean(dim=1)))
        elif last <= _GATE_CHANNELS and second == third >= _SMALLEST:
            self.maps.append(AttentionMap(self._name, "gate", made.mean(dim=3)))


def _multi_head_weights(*args: Any, **kwargs: Any) -> Tensor:
    """Return the attention [B, A, Q, K] of torch's own layer, which hides its calls from whoever watches."""
    call = inspect.signature(F.multi_head_attention_forward).bind(*args, **kwargs)
    call.apply_defaults()
    call.arguments |= {"need_weights": True, "average_attn_weights": False}
    weights = F.multi_head_attention_forward(*call.args, **call.kwargs)[1]
    assert weights is not None
    return weights


def _windows(running: Sequence[_Running]) -> _Windows | str | None:
    """Return how the innermost family that groups its tokens has cut them, None without one, or why there is no map."""
    for outer in reversed(running):
        module, shape = outer.module, outer.shape
        if isinstance(module, GCViTBlock):
            return _Windows("windows", shape[1], from_windows)
        if isinstance(module, AxisAttention):
            return _Windows("grid" if module.grid else "windows", shape[1], from_grid if module.grid else from_windows)
        if isinstance(module, SlowFastBlock) and int(module.keep * shape[2] ** 2) < shape[2] ** 2:
            return "attention to chosen tokens, which are no map"
        inside = running[-1].name.removeprefix(outer.name)
        if isinstance(module, GLMix) and inside:
            return "attention among slots, which are no places"
        if isinstance(module, SuperBlock):
            if not inside.startswith((".local_blocks", ".read")):
                return "attention to latents, which are no places"
            return _Windows("windows", isqrt(shape[1]) * isqrt(shape[2]), from_windows)
    return None


def _around(running: Sequence[_Running], batch: int) -> tuple[int, int] | None:
    """Return side and frames of the map that the nearest block was given, or, without blocks, the nearest module."""
    blocks = [i for i, each in enumerate(running) if isinstance(each.module, Block)]
    # The images themselves, which the first module takes, are the last resort.
    inner, images = (running[blocks[-1] :], running[:0]) if blocks else (running[1:], running[:1])
    shapes = [each.shape for each in reversed(inner) if each.shape[:1] == (batch,)]
    sides = [*map(_map_side, shapes), *map(_token_side, shapes), *(_map_side(each.shape) for each in images)]
    return next((each for each in sides if each is not None), None)


def _map_side(shape: tuple[int, ...]) -> tuple[int, int] | None:
    if len(shape) == 5 and shape[3] == shape[4]:
        return shape[4], shape[2]
    if len(shape) == 4 and shape[2] == shape[3]:
        return shape[3], 1
    return (shape[1], 1) if len(shape) == 4 and shape[1] == shape[2] else None


def _token_side(shape: tuple[int, ...]) -> tuple[int, int] | None:
    if len(shape) != 3:
        return None
    sides = [isqrt(places) for places in (shape[1], shape[1] - 1) if isqrt(places) ** 2 == places]
    return (sides[0], 1) if sides and sides[0] >= _SMALLEST else None


def _places(keys: int, around: int, frames: int) -> tuple[int, int, bool] | None:
    """Return side, frames and whether there is a class token, if keys lie on the map around them or a pooled one."""
    for class_token in (False, True):
        places, rest = divmod(keys - class_token, frames)
        side = isqrt(places)
        # A side that is none of these belongs to tokens that were chosen, or joined from several places.
        pooled = {-(-around // factor) for factor in range(1, around + 1)}
        if not rest and side**2 == places and side >= _SMALLEST and side in pooled:
            return side, frames, class_token
    return None


@contextmanager
def _followed(model: nn.Module, running: list[_Running]) -> Iterator[None]:
    """Keep in `running` which modules are being called, the innermost last."""
    names = {module: name for name, module in model.named_modules()}

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        first = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
        running.append(_Running(names[module], module, () if first is None else tuple(first.shape)))

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        running.pop()

    handles = [module.register_forward_pre_hook(enter, with_kwargs=True) for module in names]
    handles += [module.register_forward_hook(leave, always_call=True) for module in names]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@torch.no_grad()
def watch_attention(model: nn.Module, images: Tensor) -> tuple[list[AttentionMap], list[LeftOut]]:
    """Run images in evaluation mode; return what attention and gates look at, and what could not be read.

    Args:
        model: Any model, also one from outside the zoo; its mode and state are as before afterwards.
        images: [B, I, S, S], one or more, as the model takes them.

    Returns:
        Maps and calls that are none, each in the order in which they were made.

    Raises:
        ValueError: There are no images.
    """
    if not len(images):
        raise ValueError("expected one image or more, found none")
    watch = _Watch(len(images))
    with evaluating(model), _followed(model, watch.running), watch:
        model(images)
    watch.close()
    return watch.maps, watch.left_out


def attention_maps(model: nn.Module, images: Tensor) -> list[AttentionMap]:
    """Return the maps of `watch_attention`; none where a model has neither attention nor spatial gates."""
    return watch_attention(model, images)[0]


def gpsa_locality(model: nn.Module) -> dict[str, float]:
    """Return the share of the attention by place in each gated layer of a ConViT, the mean of sigmoid(gate) over heads.

    Source: d'Ascoli et al. 2021 (arXiv 2103.10697), equation 7. It starts at 0.73: 1 looks at places alone, 0 at what
    is there alone.

    Returns:
        By the layer's name, in their order; empty for other models.
    """
    return {
        name: float(torch.sigmoid(module.gate.detach().double()).mean())
        for name, module in model.named_modules()
        if isinstance(module, GatedPositionalAttention)
    }

"""wConv: a convolution whose kernel is weighed by how far a place is from its centre.

Source: Cammarasana & Patanè 2025, "Optimal Density Functions for Weighted Convolution in Learning Models" (arXiv
2505.24527) and "Optimal Weighted Convolution for Classification and Denoising" (arXiv 2505.24558). Written from the
equations:

    W' = W * Phi,   Phi = alpha alpha^T,   alpha = [d_1, ..., d_n, 1, d_n, ..., d_1]

with W the weights that are learned, * elementwise, and the density d from the border (d_1) inwards. With a density of
one everywhere it is the convolution to the bit, in training too.

Deviation: the layer begins with the weights that the convolution had, so that nothing but the density differs from the
model without; `start=kaiming` draws them as the paper does.

Shapes: B batch, I and O input and output channels, K side of a kernel, n = (K - 1) / 2 numbers of a density.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from umbel.core.refusal import Refusal
from umbel.models.base import check_flag, check_positive
from umbel.models.operators.base import Site, refuse, same_bias
from umbel.models.operators.kernels import Convolution, check_odd_square

# K -> the density that the authors give as an example for images.
SUGGESTED: dict[int, tuple[float, ...]] = {3: (0.7,), 5: (0.2, 0.8), 7: (0.25, 0.15, 0.55)}

_KEY = "model.operators.wconv.density"


def weighting(density: Tensor) -> Tensor:
    """Return Phi [K, K] of a density [n], which goes from the border inwards."""
    profile = torch.cat((density, density.new_ones(1), density.flip(0)))
    return torch.outer(profile, profile)


def ramp(border: float, kernel: int) -> tuple[float, ...]:
    """Return the density that rises in a straight line from `border` to 1 at the centre of a K x K kernel."""
    steps = kernel // 2
    return tuple(border + (1 - border) * step / steps for step in range(steps))


def density_for(kernel: int, given: object) -> tuple[float, ...] | None:
    """Return the density of a kernel of side `kernel`, or None where `given` has none for it.

    Args:
        kernel: K, odd.
        given: None for `SUGGESTED`; a number at the border, for `ramp`; a list, which fits one K; or a mapping from K
            to any of these two.

    Raises:
        Refusal: It is none of these, or a number is not above 0.
    """
    if given is None:
        return SUGGESTED.get(kernel)
    if isinstance(given, Mapping):
        sides = {_side(side): value for side, value in given.items()}
        for side, value in sides.items():
            if isinstance(value, Mapping) or value is None or density_for(side, value) is None:
                raise Refusal(
                    f"{_KEY}.{side} should be a number or a list of {side // 2} numbers, found {value!r}.",
                    key=f"{_KEY}.{side}",
                )
        return density_for(kernel, sides[kernel]) if kernel in sides else None
    if isinstance(given, Sequence) and not isinstance(given, str) and given:
        numbers = tuple(check_positive(_KEY, number) for number in given)
        return numbers if len(numbers) == kernel // 2 else None
    if isinstance(given, int | float) and not isinstance(given, bool):
        return ramp(check_positive(_KEY, given), kernel)
    raise Refusal(
        f"{_KEY} should be a number at the kernel's border, a list of numbers from the border inwards, or a mapping "
        f"from sides of kernels to these, found {given!r}.",
        key=_KEY,
    )


def _side(side: object) -> int:
    """Return a key of a mapping as the side of a kernel; a file's keys may be strings."""
    number = int(side) if isinstance(side, str) and side.isdigit() else side
    if isinstance(number, bool) or not isinstance(number, int) or number < 3 or number % 2 == 0:
        raise Refusal(f"{_KEY} should map odd sides of kernels, 3 or more, found {side!r}.", key=_KEY)
    return number


class WeightedConv(Convolution):
    """A convolution with the kernel W * Phi.

    Args:
        conv: The convolution whose place it takes, with its weights.
        density: n numbers from the border inwards.
        trainable: Whether they are parameters.
    """

    def __init__(self, conv: nn.Conv2d, density: Sequence[float], trainable: bool) -> None:
        weight = conv.weight.detach().clone()
        super().__init__(weight, same_bias(conv), conv.stride, conv.padding, conv.dilation, conv.groups)
        numbers = torch.tensor(density, dtype=conv.weight.dtype, device=conv.weight.device)
        self.density = nn.Parameter(numbers) if trainable else None
        # It follows from the options alone: nothing that a client has to be sent.
        self.register_buffer("phi", None if trainable else weighting(numbers), persistent=False)

    def kernel(self) -> Tensor:
        """Return W * Phi, [O, I / groups, K, K]."""
        return self.weight * (self.get_buffer("phi") if self.density is None else weighting(self.density))


def wconv(site: Site, *, density: object = None, trainable: bool = False, start: str = "conv") -> WeightedConv:
    """Kernels weighed by the distance from their centre; same parameters, a few more if trainable.

    Args:
        site: The convolution and its place.
        density: From the border inwards to the centre, which has 1: a list of (K - 1) / 2 numbers, for layers with a
            K x K kernel alone; a number, which rises in a straight line to the centre of any kernel; or a mapping from
            K to these, such as {3: [0.7], 7: 0.25}. None is the authors' for 3, 5 and 7: [0.7], [0.2, 0.8],
            [0.25, 0.15, 0.55].
        trainable: Whether each layer learns its density, starting there.
        start: `conv` keeps the weights and the bias that the model gave the layer; `kaiming` draws weights as the paper
            does (He et al. 2015, from the outputs) and starts the bias at 0.

    Raises:
        UnfitError: The kernel is even or not square, or there is no density for it.
        Refusal: An option is out of range; the message names its key.
    """
    check_flag("model.operators.wconv.trainable", trainable)
    if start not in ("conv", "kaiming"):
        key = "model.operators.wconv.start"
        raise Refusal(f"{key} should be conv or kaiming, found {start!r}.", key=key)
    numbers = density_for(3, density)  # a value that is wrong is wrong for every layer
    check_odd_square(site, "wconv")
    numbers = density_for(site.kernel, density)
    if numbers is None:
        known = list(SUGGESTED) if density is None else _sides(density)
        needed = f"a convolution with a kernel of {' or '.join(map(str, known))}, for which {_KEY} has a density"
        raise refuse(site, "wconv", needed, f"one of {site.kernel}")
    module = WeightedConv(site.conv, numbers, trainable)
    if start == "kaiming":
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    return module


def _sides(density: object) -> list[int]:
    """Return the sides of kernels that a list or a mapping has densities for."""
    if isinstance(density, Mapping):
        return [_side(side) for side in density]
    return [2 * len(density) + 1] if isinstance(density, Sequence) else []

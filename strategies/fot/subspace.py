"""Subspaces of a layer's inputs: sketched, grown, and taken out of an update.

The mathematics of FOT (Bakman et al. 2024, arXiv:2309.01289), whose strategy is `umbel.strategies.fot.method`.

Legend: D inputs of a layer, N columns, M sketch columns, R basis directions, G groups of a convolution.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from umbel.core.tree import Tree
from umbel.strategies.ggeur.noise import secret_normal

_PIECE_BYTES = 64 << 20
_SECRET_AT_ONCE = 1 << 18


def residual_sketch(
    inputs_DN: Tensor, basis: Tensor | None, width: int | None, generator: torch.Generator | None
) -> tuple[Tensor, float]:
    """Return a random sketch of what a basis does not explain, and how much that is.

    Args:
        inputs_DN: A [D, N], a layer's inputs.
        basis: U [D, R] with orthonormal columns, or None.
        width: M, columns of the sketch Y = R Omega with Omega [N, M] of normal numbers; None sends R itself.
        generator: Of Omega. Whoever can make the same one rebuilds R where N <= M; None draws Omega from the
            operating system's secret source, never the same twice.

    Returns:
        Y [D, M], or R [D, N] without sketching, and ||R||_F / ||A||_F with R = (I - U U') A: 1.0 without a basis,
        0.0 where A is nothing.
    """
    residual = inputs_DN
    energy = 1.0
    if basis is not None:
        basis = basis.to(inputs_DN.dtype)
        residual = inputs_DN - basis @ (basis.T @ inputs_DN)
        whole = float(torch.linalg.norm(inputs_DN.to(torch.float64)))
        energy = float(torch.linalg.norm(residual.to(torch.float64))) / whole if whole else 0.0
    if width is None:
        return residual, energy
    if generator is None:
        omega = _secret_omega(inputs_DN.shape[1], width, inputs_DN.dtype)
    else:
        omega = torch.randn(inputs_DN.shape[1], width, generator=generator, dtype=inputs_DN.dtype)
    return residual @ omega.to(inputs_DN.device), energy


def _secret_omega(num_columns: int, width: int, dtype: torch.dtype) -> Tensor:
    """Return Omega [N, M] of secret normal numbers, made in parts, since making one takes many times its bytes."""
    omega = torch.empty(num_columns, width, dtype=dtype)
    for part in torch.split(omega, max(1, _SECRET_AT_ONCE // width)):
        part.copy_(secret_normal(tuple(part.shape)))
    return omega


def expand_basis(
    basis: Tensor | None,
    sketch_DM: Tensor,
    energy: float,
    threshold: float,
    ratio_power: int = 2,
    min_directions: int = 0,
) -> Tensor:
    """Add the leading directions of a sketch to a basis, as many as a share of the inputs' energy needs.

    With e the share of the sketch's squared singular values in its first k directions, all of A is captured to
    (1 - rho^2) + rho^2 e. The smallest k that brings this above the threshold is taken.

    Args:
        basis: U [D, R], or None.
        sketch_DM: [D, M], of what U does not explain.
        energy: rho = ||R||_F / ||A||_F.
        threshold: Share epsilon of the energy to capture, in (0, 1].
        ratio_power: 2 takes rho^2, which is the share of the energy; 1 takes rho, as the authors' code does, and
            keeps more directions.
        min_directions: Directions to add whatever the threshold says, as long as there are any; the authors' code
            adds one.

    Returns:
        [D, R'] with orthonormal columns, the first R those of `basis`; [D, 0] when there is nothing to add to None.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"Expected a threshold in (0, 1], found {threshold}.")
    if ratio_power not in (1, 2):
        raise ValueError(f"Expected a ratio power of 1 or 2, found {ratio_power}.")
    dtype = sketch_DM.dtype if basis is None else basis.dtype
    width = sketch_DM.shape[0]
    old = sketch_DM.new_zeros(width, 0) if basis is None else basis
    rank = old.shape[1]
    share = energy**ratio_power
    wide = old.to(torch.float64)
    whole = sketch_DM.to(torch.float64)
    whole = whole - wide @ (wide.T @ whole)
    left, singular, _ = torch.linalg.svd(whole, full_matrices=False)
    # Relative to the inputs themselves: where little is left, most of it is the noise of what was taken away.
    noise = max(sketch_DM.shape) * torch.finfo(sketch_DM.dtype).eps / min(max(energy, 1e-300), 1.0)
    usable = int((singular > noise * singular[:1]).sum()) if len(singular) else 0
    if share <= 0 or not usable or not float(singular[0]) > 0:
        return old.to(dtype)
    needed = (share - (1 - threshold)) / share
    captured = (singular.square() / singular.square().sum()).cumsum(0)
    above = (captured > needed).nonzero().flatten()
    count = int(above[0]) + 1 if len(above) and threshold < 1 else usable
    count = 0 if needed <= 0 else count
    count = min(max(count, min_directions), usable, width - rank)
    if not count:
        return old.to(dtype)
    fresh = left[:, :count]
    for _ in range(2):  # twice is enough (Kahan): the residual is orthogonal up to noise only
        fresh = fresh - wide @ (wide.T @ fresh)
    lengths = torch.linalg.norm(fresh, dim=0)
    q, _ = torch.linalg.qr(fresh[:, lengths > 1e-3])  # what lies in the basis already is noise
    q = q - wide @ (wide.T @ q)
    return torch.cat([old.to(dtype), (q / torch.linalg.norm(q, dim=0)).to(dtype)], dim=1)


def unexplained(basis: Tensor, sketch: Tensor, gram: bool) -> tuple[Tensor, Tensor]:
    """Return what a basis does not explain of a sketch of whole inputs, and rho.

    Projection is linear, so that (I - U U') of the sketch A Omega is the sketch of R. ||R Omega|| / ||A Omega||
    estimates rho; with the Gram matrix A A' it is exact, by the traces.

    Args:
        basis: U, [D, R].
        sketch: A Omega, [D, M], or A A', [D, D].
        gram: Which of the two.
    """
    wide, whole = basis.to(torch.float64), sketch.to(torch.float64)
    left = whole - wide @ (wide.T @ whole)
    if gram:
        left = left - (left @ wide) @ wide.T
        share = left.trace().clamp_min(0) / whole.trace().clamp_min(1e-300)
    else:
        share = left.square().sum() / whole.square().sum().clamp_min(1e-300)
    return left.to(sketch.dtype), share.sqrt()


def project_update(update: Tensor, basis: Tensor | None) -> Tensor:
    """Return an update without its part along a basis, on the side of the layer's inputs: Delta (I - U U').

    Args:
        update: Change of a weight, [out, ...]; what follows `out` is the layer's input, of D values.
        basis: U [D, R]; or [groups, D, R] for a grouped convolution, whose columns may be zero to fill up; or None.

    Returns:
        The projected update in the shape and dtype of `update`.
    """
    if basis is None or not basis.shape[-1]:
        return update
    exact = basis.to(torch.float64)
    groups = basis.shape[0] if basis.ndim == 3 else 1
    flat = update.to(torch.float64).reshape(groups, update.shape[0] // groups, -1)
    if flat.shape[2] != basis.shape[-2]:
        raise ValueError(
            f"Expected a basis of {flat.shape[2]} inputs for an update of shape {list(update.shape)}, found "
            f"{basis.shape[-2]}."
        )
    exact = exact if basis.ndim == 3 else exact[None]
    projected = flat - (flat @ exact) @ exact.transpose(1, 2)
    return projected.reshape(update.shape).to(update.dtype)


class Sketches:
    """A client's sketches, summed over the parts of its data as they stream.

    Args:
        bases: U of each layer, if there is one.
        layers: Groups and inputs of the layers that are wanted; one input more than a layer has is a row of ones.
        width: M as a multiple of D; 0 keeps R R' in place of a sketch.
        rng: Makes the generator of a layer's Omega; None draws every Omega from the operating system's secret source.
    """

    def __init__(
        self,
        bases: Tree,
        layers: Mapping[str, tuple[int, int]],
        width: float,
        rng: Callable[[str], torch.Generator] | None,
    ) -> None:
        self._bases, self._layers, self._width, self._rng = bases, layers, width, rng
        self._generators: dict[str, torch.Generator] = {}
        self.sketch: dict[str, Tensor] = {}
        self.energy: dict[str, Tensor] = {}

    def take(self, name: str, columns: Tensor) -> None:
        """Add a layer's inputs [D, n] or [G, D, n] to its sketch."""
        if name not in self._layers:
            return
        # A piece's float64 copy and its part of Omega are no larger than a piece of patches.
        at_once = max(1, _PIECE_BYTES // (8 * max(1.0, self._width) * columns.shape[-2]))
        for piece in torch.split(columns, int(at_once), dim=-1):
            self._take(name, piece)

    def _take(self, name: str, columns: Tensor) -> None:
        if self._layers[name][1] > columns.shape[-2]:
            columns = torch.cat([columns, torch.ones_like(columns[..., :1, :])], dim=-2)
        basis = self._bases.get(name)
        if self._rng is not None and name not in self._generators:
            self._generators[name] = self._rng(f"sketch of {name}")
        generator = self._generators.get(name)
        width = math.ceil(self._width * columns.shape[-2]) or None
        groups = columns if columns.ndim == 3 else columns[None]
        sketches, energies = [], []
        for number, part in enumerate(groups):
            own = None if basis is None else (basis[number] if basis.ndim == 3 else basis).to(part.device)
            sketch, energy = residual_sketch(part, own, width, generator)
            squares = float(part.to(torch.float64).square().sum().item())
            sketches.append(sketch if width else sketch @ sketch.T)
            energies.append(torch.tensor([energy**2 * squares, squares], dtype=torch.float64))
        shape = slice(None) if columns.ndim == 3 else 0
        self._add(self.energy, name, torch.stack(energies)[shape])
        self._add(self.sketch, name, torch.stack(sketches)[shape].to(torch.float32))

    @staticmethod
    def _add(sums: dict[str, Tensor], name: str, part: Tensor) -> None:
        part = part.cpu()
        sums[name] = sums[name] + part if name in sums else part

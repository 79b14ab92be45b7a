"""Corrections of gradients that are the same arithmetic for each number: what a step can have in its graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import Tensor

Correction = Callable[[Sequence[Tensor], Sequence[Tensor]], None]


@dataclass(frozen=True)
class AffineCorrection:
    """Adds strength (w - anchor) + shift to the gradient of each parameter w, in place.

    Any function of (parameters, gradients) corrects gradients; this one says what it reads, so that it can be compiled
    with the rest of a step, and done for several clients at once.

    Attributes:
        strength: Of the pull toward the anchors, in units of the loss over squared weights.
        anchors: Where it pulls to, one tensor a parameter; none pulls nowhere.
        shifts: What is added besides, one tensor a parameter; none adds nothing.
    """

    strength: float = 0.0
    anchors: Sequence[Tensor] = ()
    shifts: Sequence[Tensor] = ()

    def __call__(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> None:
        """Correct the gradients in place.

        Raises:
            ValueError: There are anchors or shifts, but not one for each parameter.
        """
        if self.anchors:
            for parameter, gradient, anchor in zip(parameters, gradients, self.anchors, strict=True):
                gradient.add_(parameter - anchor, alpha=self.strength)
        if self.shifts:
            for gradient, shift in zip(gradients, self.shifts, strict=True):
                gradient.add_(shift)

    def corrected(self, parameters: Sequence[Tensor], gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return corrected gradients as tensors of their own, for a graph.

        Without the argument `alpha` of an addition: torch 2.13's inductor leaves it out where it makes one kernel of a
        product of matrices and what is added to it.
        """
        corrected = list(gradients)
        if self.anchors:
            pulls = [self.strength * (p - anchor) for p, anchor in zip(parameters, self.anchors, strict=True)]
            corrected = [gradient + pull for gradient, pull in zip(corrected, pulls, strict=True)]
        if self.shifts:
            corrected = [gradient + shift for gradient, shift in zip(corrected, self.shifts, strict=True)]
        return corrected

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that it reads: anchors, then shifts."""
        return [*self.anchors, *self.shifts]

    @property
    def form(self) -> tuple[float, int, int]:
        """What it is besides its tensors; corrections of one form differ in their numbers alone."""
        return self.strength, len(self.anchors), len(self.shifts)

    def reading(self, tensors: Sequence[Tensor]) -> AffineCorrection:
        """Return the same correction with other tensors, in the order of `tensors`."""
        number = len(self.anchors)
        return AffineCorrection(self.strength, tuple(tensors[:number]), tuple(tensors[number:]))

"""Numbers above 0 that differ between clients: quantiles of uniform draws by the run's seed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import accumulate
from statistics import NormalDist
from typing import Any

import torch

from umbel.core.names import unknown
from umbel.core.refusal import Refusal
from umbel.core.rng import generator

Quantity = float | dict[str, Any]
LEAST, MOST = 1e-9, 1e18  # of a rate or a time
_MOST_SIGMA = 10
_DRAWS = 1 << 32


def uniform(u: float, low: float, high: float) -> float:
    """Return low + u (high - low)."""
    return low + u * (high - low)


def lognormal(u: float, median: float, sigma: float) -> float:
    """Return median exp(sigma z), z the u-quantile of the standard normal."""
    return median * math.exp(sigma * NormalDist().inv_cdf(u))


def exponential(u: float, mean: float) -> float:
    """Return -mean log(1 - u)."""
    return -mean * math.log1p(-u)


def choice(u: float, values: list[float], shares: list[float] | None = None) -> float:
    """Return the value into whose share u falls; equal shares where none are given."""
    ends = list(accumulate(shares or [1.0] * len(values)))
    return next(value for value, end in zip(values, ends, strict=True) if u * ends[-1] < end)


@dataclass(frozen=True)
class _Distribution:
    quantile: Callable[..., float]
    parameters: tuple[str, ...]
    optional: tuple[str, ...] = ()


_TABLE = {
    "uniform": _Distribution(uniform, ("low", "high")),
    "lognormal": _Distribution(lognormal, ("median", "sigma")),
    "exponential": _Distribution(exponential, ("mean",)),
    "choice": _Distribution(choice, ("values",), ("shares",)),
}


def check(quantity: Quantity, key: str) -> None:
    """Raise a `Refusal` unless every draw is a number above 0.

    Args:
        quantity: A number, or a distribution: its `name` and its parameters.
        key: Its key.
    """
    if not isinstance(quantity, Mapping):
        _within(quantity, key)
        return
    name, given = quantity.get("name"), {k: v for k, v in quantity.items() if k != "name"}
    if name is None:
        raise Refusal(
            f"{key} is a number, or a distribution with its name; found {dict(quantity)}.",
            key=key,
            remedy=f"Write {{name: lognormal, median: 50, sigma: 0.8}}; known: {', '.join(_TABLE)}.",
        )
    if not isinstance(name, str) or name not in _TABLE:
        raise unknown("distribution", str(name), _TABLE, key=key)
    kind = _TABLE[name]
    lacking, extra = set(kind.parameters) - given.keys(), given.keys() - {*kind.parameters, *kind.optional}
    if lacking or extra:
        wrong = f"{min(lacking)} is missing" if lacking else f"{min(map(str, extra))} is none of them"
        takes = ", ".join([*kind.parameters, *(f"{each} (optional)" for each in kind.optional)])
        raise Refusal(f"{key}: {name} takes {takes}; {wrong}.", key=key, remedy="Give these.")
    for parameter, value in given.items():
        _parameter(parameter, value, f"{key}.{parameter}")
    if name == "uniform" and given["low"] > given["high"]:
        raise Refusal(f"{key}: low is above high.", key=key, remedy="Exchange them.")
    if name == "choice" and len(given.get("shares", given["values"])) != len(given["values"]):
        raise Refusal(f"{key}: a share for each value, or no shares.", key=key, remedy="Give as many shares as values.")


def _parameter(name: str, value: object, key: str) -> None:
    if name == "sigma":
        _within(value, key, 0.0, _MOST_SIGMA)
        return
    if name not in ("values", "shares"):
        _within(value, key)
        return
    if not isinstance(value, list) or not value:
        raise Refusal(f"{key} is a list of numbers, found {value!r}.", key=key, remedy="Write [10, 100].")
    for each in value:
        _within(each, key)


def _within(value: object, key: str, least: float = LEAST, most: float = MOST) -> None:
    """Refuse what is no number of a sensible size: times made of it have to be numbers, too."""
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not least <= value <= most:  # type: ignore[operator]
        wanted = f"from {least:g} to {most:g}" if least <= 0 else f"above 0, from {least:g} to {most:g}"
        raise Refusal(f"{key} should be a number {wanted}, found {value!r}.", key=key, remedy="Set one.")


def draw(quantity: Quantity | None, number: int, seed: int, purpose: str) -> tuple[float, ...]:
    """Return a value for each of so many clients.

    Args:
        quantity: As in `check`; None is infinite.
        number: How many clients.
        seed: The run's seed.
        purpose: What the values are; sets the draws of different quantities apart.
    """
    if quantity is None:
        return (math.inf,) * number
    if not isinstance(quantity, Mapping):
        return (float(quantity),) * number
    quantile = _TABLE[quantity["name"]].quantile
    parameters = {name: value for name, value in quantity.items() if name != "name"}
    return tuple(quantile(u, **parameters) for u in shares(number, seed, purpose))


def shares(number: int, seed: int, purpose: str) -> list[float]:
    """Return so many uniform draws within (0, 1), the same on every machine."""
    source = generator(seed, 0, "devices", -1, purpose)
    return [each / _DRAWS for each in torch.randint(1, _DRAWS, (number,), generator=source).tolist()]

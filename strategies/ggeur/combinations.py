"""Options of GGEUR that do not go together or with an experiment, and what would break a stated (epsilon, delta)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umbel.core.refusal import Refusal
from umbel.strategies.base import Setting

if TYPE_CHECKING:
    from umbel.strategies.ggeur.method import Config


def check_combinations(config: Config) -> None:
    """Refuse options that do not go together."""
    if config.keep_own and not config.domains:
        raise _refused("keep_own", "is for mixtures with other domains' prototypes", "domains=true")
    if config.release == "sums":
        for key in ("within_only", "guide"):
            if getattr(config, key):
                raise _refused(key, "needs each client's own statistics", "release=moments")
        if config.wire != "float32":
            raise _refused("wire", "is for strategy.release=moments; sums always travel in float64", "wire=float32")
    if config.legacy_small_eig_scale and config.rank:
        raise _refused("legacy_small_eig_scale", "changes the smallest directions", "rank=0")
    if config.epsilon:
        _check_privacy(config)


def check_setting(config: Config, setting: Setting) -> None:
    """Refuse an experiment without embeddings to complete, or with classes that come and go."""
    if config.augment and not config.refresh and not setting.data.encoder:
        raise Refusal(
            "GGEUR completes embeddings of a frozen encoder, and there is none.",
            key="data.encoder",
            remedy="Set data.encoder, or strategy.refresh to take features of the global model every so many rounds.",
        )
    if setting.schedule.is_sequence:
        raise Refusal(
            "GGEUR takes what it knows of the classes once, in the first round, and does not go with "
            "a sequence of tasks.",
            key="data.rounds_per_task",
            remedy="Set data.rounds_per_task=0.",
        )


def _check_privacy(config: Config) -> None:
    """Refuse what would break the stated (epsilon, delta)."""
    if config.release != "sums":
        raise _refused("epsilon", "is for sums", "release=sums")
    if not config.clip:
        needed = "needs strategy.clip, the largest length of an embedding that counts"
        raise _refused("epsilon", needed, "clip above 0")
    for key, reason, off in (
        ("domains", "prototypes would travel without noise", "domains=false"),
        ("refresh", "it is spent in one release", "refresh=0"),
    ):
        if getattr(config, key):
            raise _refused("epsilon", f"does not go with strategy.{key}: {reason}", off)
    if config.min_count > 1:
        tells = "does not go with strategy.min_count above 1: whether a class is there tells"
        raise _refused("epsilon", tells, "min_count=1")


def _refused(key: str, reason: str, remedy: str) -> Refusal:
    return Refusal(f"strategy.{key} {reason}.", key=f"strategy.{key}", remedy=f"Set strategy.{remedy}.")

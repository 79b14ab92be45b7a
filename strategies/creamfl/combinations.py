"""Options of CreamFL that do not go together, or not with an experiment."""

from __future__ import annotations

from typing import TYPE_CHECKING

from umbel.core.refusal import Refusal
from umbel.data import partition
from umbel.data.sites.named import NAME as SITES
from umbel.strategies.base import Setting
from umbel.strategies.creamfl.architectures import KINDS
from umbel.strategies.setting import refuse_other_losses

if TYPE_CHECKING:
    from umbel.strategies.creamfl.method import Config


def check_options(config: Config) -> None:
    """Refuse options that do not go together."""
    if config.public_per_round == 1 and config.exclude_self:
        raise Refusal(
            "strategy.exclude_self=true leaves nothing of one sample.",
            key="strategy.exclude_self",
            remedy="Set strategy.public_per_round to more than 1.",
        )
    strangers = set(config.noise_clients) - set(range(config.num_image + config.num_text + config.num_both))
    if strangers:
        raise Refusal(
            f"strategy.noise_clients names {sorted(strangers)}, which are no clients.",
            key="strategy.noise_clients",
            remedy="Clients are counted from 0.",
        )


def check_setting(config: Config, setting: Setting) -> None:
    """Refuse an experiment without public pairs, with other clients, or with parts that CreamFL has no use for."""
    refuse_other_losses(setting, "creamfl")
    data, counts = setting.data, [config.num_image, config.num_text, config.num_both]
    if data.name == SITES:
        raise Refusal(
            "CreamFL teaches by public pairs of image and text, and where each site has its own data there are none.",
            key="data.name",
            remedy="Choose a data.name with both, such as emoji_pairs, or another strategy.",
        )
    for key, needed in (("public", data.public > 0), ("text_encoder", bool(data.text_encoder))):
        if not needed:
            raise Refusal(
                "CreamFL teaches by public pairs of image and text.",
                key=f"data.{key}",
                remedy=f"Set data.{key} (and a data set with both, such as emoji_pairs).",
            )
    if sum(counts) != data.num_clients:
        keys = [f"strategy.num_{kind}={number}" for kind, number in zip(KINDS, counts, strict=True)]
        raise Refusal(
            f"{' + '.join(keys)} should make data.num_clients={data.num_clients}.",
            key="data.num_clients",
            remedy=f"Set data.num_clients={sum(counts)}, or other numbers of each kind.",
        )
    if data.augment != "none" or partition.tasks(data.partition) != "none":
        raise Refusal(
            "CreamFL reads images and texts as they are.",
            key="data.augment" if data.augment != "none" else "data.partition",
            remedy="Set data.augment=none and no sequence of tasks.",
        )
    if setting.evaluate.collapse:
        raise Refusal(
            "evaluate.collapse=true measures features and a head of classes, and CreamFL has none.",
            key="evaluate.collapse",
            remedy="Set it to false.",
        )
    if setting.model.norm != "average":
        raise Refusal(
            f"model.norm={setting.model.norm} is a rule for models that are averaged; CreamFL averages none, and "
            "each client keeps its own.",
            key="model.norm",
            remedy="Set model.norm=average, and choose models without batch norm.",
        )
    if setting.model.operators:
        raise Refusal(
            "model.operators go into the experiment's model, and under CreamFL each client has one of "
            "strategy.image_models.",
            key="model.operators",
            remedy="Leave model.operators out.",
        )

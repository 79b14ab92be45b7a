"""Experiments as OmegaConf has them, for projects that compose theirs by it or by Hydra.

umbel reads its own files without it: there `${USER}` and `???` are text. Whoever hands over an OmegaConf container has
its interpolations and missing values meant.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from umbel.conf.errors import ExperimentError

if TYPE_CHECKING:
    from omegaconf import DictConfig as DictConfig


def as_text(config: DictConfig) -> str:
    """Return an OmegaConf container as YAML that `umbel.load` reads, with interpolations resolved.

    Raises:
        ExperimentError: An interpolation leads nowhere, or a value is missing.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        if missing := sorted(OmegaConf.missing_keys(config)):
            raise ExperimentError(
                f"The OmegaConf container lacks {', '.join(missing)}.", key=missing[0], remedy="Give it a value."
            )
        return OmegaConf.to_yaml(config, resolve=True)
    except OmegaConfBaseException as error:
        reason = str(error).splitlines()[0]
        raise ExperimentError(f"The OmegaConf container cannot be resolved: {reason}.") from error

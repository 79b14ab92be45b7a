"""Which experiments a site lets others run: what its policy file says, and whether an experiment keeps to it."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from umbel.conf.errors import ExperimentError
from umbel.conf.typed import section, untyped
from umbel.conf.written import Tree, read_yaml
from umbel.core.refusal import Refusal

# Names with a colon that are no import path, and the only keys where they are read so: a strategy of Flower, a data set
# of the hub, an encoder by its name or folder.
_NO_CODE = {
    ("strategy", "name"): "flwr:",
    ("strategy", "base"): "flwr:",
    ("data", "name"): "hub:",
    ("data", "encoder"): "clip:",
    ("data", "text_encoder"): "clip:",
}
_OWN_CODE = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*:[^\W\d]\w*")


class Forbidden(Refusal):
    """A site does not take a run; nothing of it has been unpacked or started."""


@dataclass(frozen=True)
class Allowed:
    """What a site's policy file says; a list that is not there allows all.

    Attributes:
        experiments: Names of experiments: what a submitter calls them, and no more than a word. What they say is bound
            by the other lists.
        strategies: Names of strategies, `flwr:<class>` for Flower's own; one that another goes over has to be named
            too.
        models: Names of models.
        data: Names of data sets.
        data_keys: Keys of the section `data` that an experiment may set to something else than their default.
        bundles: SHA-256 of bundles (`umbel federate bundle` prints it): code that the site has read.
        max_rounds: The most rounds.
        own_code: Whether an experiment may name code by its import path (`module:name`).
        max_age_days: How long after it was signed a run may come.
    """

    experiments: tuple[str, ...] | None = None
    strategies: tuple[str, ...] | None = None
    models: tuple[str, ...] | None = None
    data: tuple[str, ...] | None = None
    data_keys: tuple[str, ...] | None = None
    bundles: tuple[str, ...] | None = None
    max_rounds: int | None = None
    own_code: bool = False
    max_age_days: float = 7.0


def read_allowed(path: Path) -> Allowed:
    """Read a policy file.

    Raises:
        Refusal: It cannot be read, or says what it cannot say.
    """
    tree = read_file(path)
    allowed: Allowed = section(Allowed, tree, "")
    if allowed.max_rounds is not None and allowed.max_rounds < 1:
        raise Refusal(f"{path}: max_rounds={allowed.max_rounds} allows nothing.", key="max_rounds", remedy="Set 1.")
    if not allowed.max_age_days > 0:
        raise Refusal(f"{path}: max_age_days is above 0.", key="max_age_days", remedy="Set 7.")
    if allowed.data_keys is not None:
        known = _defaults_of_data()
        for key in allowed.data_keys:
            if key not in known:
                raise Refusal(f"{path}: there is no key data.{key}.", key="data_keys", remedy="See umbel list keys.")
    return allowed


def read_file(path: Path) -> Tree:
    """Return what one of a site's files says.

    Raises:
        Refusal: It cannot be read, or is no YAML.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} cannot be read: {error}.", remedy="Make it readable for the node.") from error
    return read_yaml(text, str(path))


def check_experiment(allowed: Allowed, bundle_hash: str, run_config: Mapping[str, Any]) -> None:
    """Refuse a run whose experiment says what is not allowed.

    Args:
        allowed: What is.
        bundle_hash: SHA-256 of the bundle as it came, in hexadecimal.
        run_config: The run's configuration.

    Raises:
        Forbidden: With the reason.
    """
    if allowed.bundles is not None and bundle_hash not in allowed.bundles:
        raise Forbidden(f"This site does not allow the bundle {bundle_hash}: its code is not on its list.")
    if str(run_config.get("overrides", "")):
        raise Forbidden("The run has overrides beside its experiment.", remedy="Submit it with umbel federate submit.")
    text = str(run_config.get("experiment-yaml", ""))
    if not text:
        raise Forbidden("The run names an experiment without its text.", remedy="Submit it with umbel federate submit.")
    try:
        experiment = untyped(read_yaml(text, "The experiment"), "")
    except ExperimentError as error:
        raise Forbidden(f"The experiment cannot be read: {error}") from error
    if not isinstance(experiment, dict):
        raise Forbidden("The experiment is no mapping of sections.")
    name = str(run_config.get("experiment", ""))
    _check_listed("experiment", name, allowed.experiments)
    if base := _part(experiment, "strategy").get("base"):
        _check_listed("strategy", str(base), allowed.strategies)
    for kind, listed in (("strategy", allowed.strategies), ("model", allowed.models), ("data", allowed.data)):
        _check_listed(kind, str(_part(experiment, kind).get("name", "")), listed)
    rounds = _part(experiment, "run").get("rounds")
    if allowed.max_rounds is not None and not (isinstance(rounds, int) and rounds <= allowed.max_rounds):
        raise Forbidden(f"The run has {rounds} rounds, and this site allows {allowed.max_rounds}.", key="run.rounds")
    if not allowed.own_code:
        for path, value in _texts(experiment, ()):
            if _is_code(path, value):
                key = ".".join(path)
                raise Forbidden(f"The run names code of its own, {key}={value}, and this site allows none.", key=key)
    if allowed.data_keys is not None:
        _check_data_keys(_part(experiment, "data"), allowed.data_keys)


def _check_listed(kind: str, name: str, listed: tuple[str, ...] | None) -> None:
    if listed is not None and name not in listed:
        raise Forbidden(f"This site does not allow the {kind} {name!r}; it allows {', '.join(listed) or 'none'}.")


def _check_data_keys(section_: Mapping[str, Any], listed: tuple[str, ...]) -> None:
    defaults = _defaults_of_data()
    for key, value in section_.items():
        plain = list(value) if isinstance(value, tuple) else value
        default = list(defaults[key]) if isinstance(defaults.get(key), tuple) else defaults.get(key)
        if key not in listed and (key not in defaults or plain != default):
            shown = json.dumps(plain, default=str)[:60]
            raise Forbidden(
                f"The run sets data.{key}={shown}, and this site allows {', '.join(listed) or 'no key of data'}.",
                key=f"data.{key}",
            )


def _defaults_of_data() -> dict[str, Any]:
    from umbel.data.config import DataConfig  # brings torch, for which nodes of other sites need not wait

    return {each.name: getattr(DataConfig(), each.name) for each in fields(DataConfig)}


def _part(experiment: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    part = experiment.get(name)
    return part if isinstance(part, dict) else {}


def _texts(value: Any, path: tuple[str, ...]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Yield all texts of an experiment with their keys, keys of mappings among them: operators are named by those."""
    if isinstance(value, str):
        yield path, value
    elif isinstance(value, dict):
        for key, each in value.items():
            yield (*path, key), key
            yield from _texts(each, (*path, key))
    elif isinstance(value, list):
        for each in value:
            yield from _texts(each, path)


def _is_code(path: tuple[str, ...], value: str) -> bool:
    """Say whether what stands at a key would be imported; names of the run's own and places never are."""
    if path in (("name",), ("description",), ("run", "name"), ("run", "results")) or path[0] == "engine":
        return False
    return bool(_OWN_CODE.fullmatch(value)) and not (path in _NO_CODE and value.startswith(_NO_CODE[path]))

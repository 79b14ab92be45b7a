"""What a site lets others run on its node: whose bundles, and which experiments.

Two files of the site say it. `trusted.yaml` has the names and public keys of those whose signed runs it takes; with it,
what nobody of them signed is refused. `policy.yaml` has lists of what it allows. Both are read again when they change,
and both are asked before a bundle is unpacked: what they refuse has run nothing.

What is signed is good for one run, and has a number of its own that nothing else has (`nonce`). The node notes by which
run it came first, by its hash and not by the signature, which can be written in several ways; with another run it is a
replay and is refused. A run that is resumed is submitted, and signed, anew. Notes are kept for as long as it is
taken at all (`max_age_days`), after which its age refuses it; a run that is noted may go on for longer.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from umbel.conf.errors import ExperimentError
from umbel.conf.typed import convert, section, untyped
from umbel.conf.written import Tree, read_yaml
from umbel.core.files import read_json, stamp, write_json
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import PublicKey, digest, read_public, verify

PURPOSE = "run"  # what a signature of a submitted run is for
SIGNED_KEYS = ("experiment", "overrides", "experiment_yaml", "folder", "resume", "signed", "nonce")
_WITH_SIGNATURE = ("signer", "signature")
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
_SECONDS = re.compile("[0-9]{1,12}")
_DAY = 24 * 60 * 60.0
_AHEAD_SECONDS = 300.0  # a submitter's clock may be so far ahead


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


def signed_content(bundle_hash: str, run_config: Mapping[str, Any]) -> dict[str, str]:
    """Return what a submitter signs of a run: the bundle's hash and all that the run's configuration says.

    Args:
        bundle_hash: SHA-256 of the bundle, in hexadecimal.
        run_config: The run's configuration; its values count as text.

    Raises:
        Forbidden: It says something twice, once with - and once with _ in the key.
    """
    config = {key.replace("-", "_"): str(value) for key, value in run_config.items()}
    if len(config) != len(run_config):
        raise Forbidden("The run's configuration has keys that differ in - and _ alone.")
    return {"fab_hash": bundle_hash, **{key: config.get(key, "") for key in SIGNED_KEYS}}


def read_trusted(path: Path) -> dict[str, PublicKey]:
    """Read names and their public keys.

    Raises:
        Refusal: It cannot be read, or has something that is no name of a key.
    """
    tree = _read(path)
    if not isinstance(tree, dict):
        return {}
    keys = {}
    for name, text in tree.items():
        try:
            keys[name] = read_public(str(convert(text, str, name)))
        except Refusal as error:
            raise Refusal(f"{path}: {name}: {error.reason}", key=name, remedy=error.remedy) from error
    return keys


@dataclass
class Policy:
    """What a node asks before it takes a run.

    Args:
        policy: The policy file, or None.
        trusted: The file of trusted signers, or None: then unsigned runs are taken.
        seen: Where the node notes the signatures that it has seen, or None: then only this process knows them.
    """

    policy: Path | None = None
    trusted: Path | None = None
    seen: Path | None = None
    _used: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def read(cls, policy: Path | None, trusted: Path | None = None, seen: Path | None = None) -> Policy:
        """Return the policy of a site.

        Raises:
            Refusal: One of its files cannot be read or says what it cannot say.
        """
        made = cls(policy, trusted, seen)
        made.allowed()
        made.signers()
        if seen is not None and seen.is_file():
            try:
                made._used = {str(key): list(value) for key, value in read_json(seen).items()}
            except (ValueError, AttributeError, TypeError) as error:
                raise Refusal(
                    f"{seen} is damaged: {error}.",
                    remedy=f"Remove it; runs that were signed before then can come a second time: {seen}",
                ) from error
        return made

    def allowed(self) -> Allowed:
        """Return what the policy file says now."""
        return Allowed() if self.policy is None else _allowed(self.policy)

    def signers(self) -> dict[str, PublicKey] | None:
        """Return whose signatures are taken now; None takes runs without one."""
        return None if self.trusted is None else read_trusted(self.trusted)

    def stamp(self) -> object:
        """Return what is another value once one of the two files has changed, or is gone."""
        return tuple(stamp(file) for file in (self.policy, self.trusted) if file is not None)

    def check(self, bundle_hash: str, run_config: Mapping[str, Any], run_id: int = 0) -> None:
        """Refuse a run that this site does not take.

        Args:
            bundle_hash: SHA-256 of the bundle as it came, in hexadecimal.
            run_config: The run's configuration.
            run_id: Flower's number of the run; a signature belongs to the first run that it came with.

        Raises:
            Forbidden: With the reason.
            Refusal: A file of the policy can no longer be read.
        """
        allowed, signers = self.allowed(), self.signers()
        content = signed_content(bundle_hash, run_config)
        mark = digest(PURPOSE, content)
        if signers is not None:
            is_known = mark in self._used and self._used[mark][0] == str(run_id)
            self._check_signature(signers, allowed, content, run_config, is_known)
        if self.policy is not None:
            _check_experiment(allowed, bundle_hash, run_config)
        if signers is not None:
            self._check_first(mark, run_id, allowed)

    def _check_signature(
        self,
        signers: Mapping[str, PublicKey],
        allowed: Allowed,
        content: dict[str, str],
        config: Mapping[str, Any],
        is_known: bool,
    ) -> None:
        signer, signature = str(config.get("signer", "")), str(config.get("signature", ""))
        known = f"This site trusts {', '.join(sorted(signers)) or 'nobody'}."
        if not signature:
            raise Forbidden("The run is not signed.", remedy=f"{known} Submit it with umbel federate submit.")
        if signer not in signers:
            raise Forbidden(f"The run is signed by {signer[:60]!r}, whom this site does not trust.", remedy=known)
        if not verify(signers[signer], PURPOSE, content, signature):
            raise Forbidden(
                f"The signature of {signer} does not fit: the key is another, or the bundle, the experiment or its "
                "folder is not what was signed."
            )
        unsigned = {key.replace("-", "_") for key in config} - {*SIGNED_KEYS, *_WITH_SIGNATURE}
        if unsigned:
            raise Forbidden(
                f"The run's configuration has keys that no signature covers: {', '.join(sorted(unsigned))}."
            )
        if not _SECONDS.fullmatch(content["signed"]):
            raise Forbidden(f"The run of {signer} does not say when it was signed.")
        age = time.time() - int(content["signed"])
        if not is_known and age > allowed.max_age_days * _DAY:
            raise Forbidden(
                f"{signer} signed the run {age / _DAY:.1f} days ago; this site takes {allowed.max_age_days:g}.",
                remedy="Submit it anew.",
            )
        if age < -_AHEAD_SECONDS:
            raise Forbidden(
                f"{signer} signed the run {-age:.0f} s in the future.", remedy="Set the clock of one of the two."
            )

    def _check_first(self, mark: str, run_id: int, allowed: Allowed) -> None:
        """Refuse what came with another run, and note what is new.

        Args:
            mark: The hash of what is signed.
            run_id: Flower's number of the run.
            allowed: What the policy says.
        """
        now = time.time()
        used = self._used.get(mark)
        if used is not None:
            if used[0] != str(run_id):
                raise Forbidden(
                    "The run is a replay: this signed run came before, as another.",
                    remedy="A signature is good for one run. Submit it anew.",
                )
            return
        kept = now - allowed.max_age_days * _DAY - _AHEAD_SECONDS
        self._used = {key: value for key, value in self._used.items() if value[1] >= kept}
        self._used[mark] = [str(run_id), now]
        if self.seen is not None:
            write_json(self.seen, self._used)


def _allowed(path: Path) -> Allowed:
    tree = _read(path)
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


def _read(path: Path) -> Tree:
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} cannot be read: {error}.", remedy="Make it readable for the node.") from error
    return read_yaml(text, str(path))


def _check_experiment(allowed: Allowed, bundle_hash: str, run_config: Mapping[str, Any]) -> None:
    """Compare what an experiment says with what is allowed."""
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

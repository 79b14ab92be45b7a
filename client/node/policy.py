"""What a site lets others run on its node: whose bundles, and which experiments.

Two files of the site say it. `trusted.yaml` has the names and public keys of those whose signed runs it takes; with it,
what nobody of them signed is refused. `policy.yaml` has lists of what it allows (`allowed.py` compares). Both are read
again when they change, and both are asked before a bundle is unpacked: what they refuse has run nothing.

What is signed is good for one run, and has a number of its own that nothing else has (`nonce`). The node notes by which
run it came first, by its hash and not by the signature, which can be written in several ways; with another run it is a
replay and is refused. A run that is resumed is submitted, and signed, anew. Notes are kept for as long as it is
taken at all (`max_age_days`), after which its age refuses it; a run that is noted may go on for longer.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umbel.client.node.allowed import Allowed, Forbidden, check_experiment, read_allowed, read_file
from umbel.conf.typed import convert
from umbel.core.files import read_json, stamp, write_json
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import PublicKey, digest, read_public, verify

PURPOSE = "run"  # what a signature of a submitted run is for
SIGNED_KEYS = ("experiment", "overrides", "experiment_yaml", "folder", "resume", "signed", "nonce")
_WITH_SIGNATURE = ("signer", "signature")
_SECONDS = re.compile("[0-9]{1,12}")
_DAY = 24 * 60 * 60.0
_AHEAD_SECONDS = 300.0  # a submitter's clock may be so far ahead


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
    tree = read_file(path)
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
        return Allowed() if self.policy is None else read_allowed(self.policy)

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
            check_experiment(allowed, bundle_hash, run_config)
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

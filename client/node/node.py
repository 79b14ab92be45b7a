"""A warm node: takes messages from a SuperLink, has them answered by a process for each run, and signs for its site."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import subprocess
import time
from collections import OrderedDict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from flwr.app import ConfigRecord, Error, Message

from umbel.client.node.bundle import unpack_anew
from umbel.client.node.connection import Connection, LostError, RunOverError
from umbel.client.node.process import ASK_SECONDS, WarmProcess, end, spare
from umbel.core.leftovers import sweep
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import PrivateKey, greeting_signature

GREETING, HEAD = "query", "umbel"  # kind of a greeting, and the record that holds what it says (core/wire/messages.py)
_FIRST_WAIT, _LONGEST_WAIT = 0.01, 0.5
_PATIENCE = 5.0  # how many times as long as a look took to wait for the next
_TIDY_SECONDS = 10.0  # how long a node is idle before it asks which of its runs are over
_MAX_RUNS = 2
_NODE_FAILED = 3
log = logging.getLogger("umbel.node")


class RunPolicy(Protocol):
    """What a site asks before it takes a run (`umbel.client.node.policy.Policy`)."""

    def check(self, bundle_hash: str, run_config: dict[str, Any], run_id: int) -> None:
        """Raise a Refusal for a run that the site does not take."""

    def stamp(self) -> object:
        """Return what is another value once its files have changed."""


@dataclass
class _Run:
    """A run that the site takes.

    Attributes:
        process: What runs its code.
        folder: Of its bundle, unpacked for it alone.
        bundle_hash: SHA-256 of its bundle.
        run_config: Its configuration.
        stamp: Of the policy when that was last asked.
    """

    process: WarmProcess
    folder: Path
    bundle_hash: str
    run_config: dict[str, Any]
    stamp: object

    def end(self) -> None:
        """End its process, and remove what was unpacked for it."""
        self.process.close()
        shutil.rmtree(self.folder, ignore_errors=True)


@dataclass(frozen=True)
class Rules:
    """What a site decides about its node.

    Attributes:
        node_config: The node's configuration.
        home: Where bundles are unpacked.
        key: The site's key, which signs answers to greetings; it never reaches the process that runs a bundle's code.
        policy: Asked before a run is taken; None takes every run.
        ask_seconds: How often to look whether anybody still waits for an answer.
    """

    node_config: dict[str, Any]
    home: Path
    key: PrivateKey | None = None
    policy: RunPolicy | None = field(default=None)
    ask_seconds: float = ASK_SECONDS


class Node:
    """Takes messages from a SuperLink and answers them.

    Args:
        connection: To the SuperLink.
        rules: What its site decides.
    """

    def __init__(self, connection: Connection, rules: Rules) -> None:
        self.node_id = connection.node_id
        self._connection = connection
        self._rules = rules
        self._runs: OrderedDict[int, _Run] = OrderedDict()
        self._spare: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def stop(self) -> None:
        """Ask `serve` to return as soon as it can."""
        self._stopped = True

    def serve(self) -> None:
        """Look for messages until stopped."""
        sweep(self._rules.home)  # bundles of a node that was killed
        wait, tidy_at = _FIRST_WAIT, time.monotonic() + _TIDY_SECONDS
        while not self._stopped:
            if not self._runs and self._spare is None:  # while one runs, memory is its own
                self._spare = spare()
            asked = time.monotonic()
            try:
                worked = self._look()
            except RunOverError:
                worked = False  # the run ended while its message was on the way
            except LostError:
                log.exception("a message was lost on its way")
                worked = False
            # A SuperLink that is slow to say that there is nothing is asked less often.
            slow = _PATIENCE * (time.monotonic() - asked)
            wait = _FIRST_WAIT if worked else min(max(wait * 1.2, slow), _LONGEST_WAIT)
            if worked:
                tidy_at = time.monotonic() + _TIDY_SECONDS
            elif time.monotonic() > tidy_at:
                self._tidy()
                tidy_at = time.monotonic() + _TIDY_SECONDS
            time.sleep(wait)

    def _tidy(self) -> None:
        """End the processes of runs that are over: they hold a model, data, perhaps a GPU."""
        for run_id in list(self._runs):
            try:
                self._connection.check_running(run_id)
            except RunOverError:
                self._end(run_id)

    def _look(self) -> bool:
        message = self._connection.receive()
        if message is None:
            return False
        start = time.monotonic()
        self._connection.send(self.answer(message), time.monotonic() - start)
        return True

    def answer(self, message: Message) -> Message:
        """Return the answer to a message; whatever goes wrong here is one too.

        Raises:
            RunOverError: Its run does not run any more.
        """
        run_id, end = message.metadata.run_id, message.metadata.created_at + message.metadata.ttl

        def look() -> None:
            """Give up what nobody waits for any more: the run has ended, or the server's deadline has passed."""
            if self._stopped:
                raise RunOverError
            self._connection.check_running(run_id)
            if time.time() > end:
                raise TimeoutError("no answer before the server's deadline")

        try:
            reply = self._process(run_id).ask(message, look)
            return self._signed(message, reply) if self._rules.key else reply
        except RunOverError:
            self._end(run_id)
            raise
        except Refusal as error:
            log.warning("run %s is not taken: %s", run_id, error)
            self._end(run_id)
            return Message(Error(_NODE_FAILED, str(error)), reply_to=message)
        except Exception as error:
            log.exception("run %s", run_id)
            self._end(run_id)
            return Message(Error(_NODE_FAILED, f"{type(error).__name__}: {error}"), reply_to=message)

    def _signed(self, message: Message, reply: Message) -> Message:
        """Return an answer to a greeting with the site's signature, by which the server knows whose it is."""
        if message.metadata.message_type != GREETING or reply.has_error() or self._rules.key is None:
            return reply
        asked, said = _said(message), _said(reply)
        said["site"] = greeting_signature(self._rules.key, asked, self.node_id, said)
        reply.content[HEAD] = ConfigRecord({"json": json.dumps(said)})
        return reply

    def _end(self, run_id: int) -> None:
        if run_id in self._runs:
            self._runs.pop(run_id).end()

    def _process(self, run_id: int) -> WarmProcess:
        """Return the run's process; start it in the unpacked bundle if there is none.

        Raises:
            Refusal: The site does not take the run, or no longer: what its files say counts from the next message on.
        """
        if run_id in self._runs and not self._runs[run_id].process.alive:
            self._end(run_id)  # it died between two messages
        policy = self._rules.policy
        if run_id in self._runs and policy is not None and policy.stamp() != self._runs[run_id].stamp:
            run, now = self._runs[run_id], policy.stamp()
            policy.check(run.bundle_hash, run.run_config, run_id)
            run.stamp = now
        if run_id not in self._runs:
            bundle = self._connection.bundle(run_id)
            digest = hashlib.sha256(bundle.content).hexdigest()  # of what came, whatever the SuperLink calls it
            stamp = None if policy is None else policy.stamp()
            if policy is not None:
                policy.check(digest, bundle.run_config, run_id)
            folder = unpack_anew(bundle.content, self._rules.home, digest)
            start = {
                "run_id": run_id,
                "node_id": self.node_id,
                "node_config": self._rules.node_config,
                "run_config": bundle.run_config,
            }
            ready, self._spare = self._spare, None
            process = WarmProcess(folder, start, self._rules.ask_seconds, ready)
            self._runs[run_id] = _Run(process, folder, digest, bundle.run_config, stamp)
            while len(self._runs) > _MAX_RUNS:
                self._runs.popitem(last=False)[1].end()
        self._runs.move_to_end(run_id)
        return self._runs[run_id].process

    def close(self) -> None:
        """End all processes."""
        while self._runs:
            self._runs.popitem()[1].end()
        if self._spare is not None:
            end(self._spare)
            self._spare = None


def _said(message: Message) -> dict[str, Any]:
    """Return what a greeting or its answer says; `core/wire/messages.py` would load torch for it.

    Raises:
        ValueError: It says nothing that can be read.
    """
    try:
        said = json.loads(str(message.content.config_records[HEAD]["json"]))
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"a greeting that cannot be read: {error}") from error
    if not isinstance(said, dict):
        raise ValueError("a greeting that is no mapping")
    return said

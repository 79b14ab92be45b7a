"""Before the first round, where each site has its own data: all agree on classes and on how pictures are normalised.

Two steps, each a message to every node: which classes there are with how many examples, and, of the classes that are
then chosen, sums over the training pictures. What came of it is kept in the run's folder, so that a resume goes by it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from umbel.conf.errors import ExperimentError
from umbel.conf.schema import Experiment
from umbel.core.files import DamagedError, read_sealed, write_sealed
from umbel.core.names import shortened
from umbel.core.refusal import Refusal
from umbel.data import partition
from umbel.data.sites import agreement
from umbel.data.sites.agreement import Agreement, Inventory, read_notices
from umbel.data.sites.description import SPLITS
from umbel.data.sites.sums import Sums
from umbel.server.errors import RunStoppedError
from umbel.server.nodes import Directory
from umbel.server.port import Port, Question

FILE = "agreed.json"
_KIND = "query.agree"
_COPY = "Bring it back from a copy, or start a new run."
_MOST_SITES = 20  # that a run's notices speak of


def kept(folder: Path) -> Agreement | None:
    """Return what the sites of a run agreed on; None where they have not.

    Raises:
        DamagedError: The file is not what was written.
    """
    file = folder / FILE
    if not file.is_file():
        return None
    try:
        return Agreement.read(read_sealed(file))
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise DamagedError.of(file, str(error), _COPY) from error


class Round:
    """Asks all nodes what has to be agreed on.

    Args:
        experiment: The experiment.
        port: How nodes are reached.
        directory: Which node holds which clients.
        config_hash: Hash of the server's experiment.
        notice: Told a sentence for the run's report.
        on_wait: Called while waiting; may raise to stop.
    """

    def __init__(
        self,
        experiment: Experiment,
        port: Port,
        directory: Directory,
        config_hash: str,
        notice: Callable[[str], None],
        on_wait: Callable[[], None],
    ) -> None:
        self._experiment = experiment
        self._port = port
        self._directory = directory
        self._config_hash = config_hash
        self._notice = notice
        self._on_wait = on_wait

    def agree(self) -> Agreement:
        """Return what all agree on.

        Raises:
            Refusal: A site's data do not go with the experiment; the message names the site.
            RunStoppedError: A node does not answer, or what it says cannot be.
        """
        data = self._experiment.data
        everyone = range(data.num_clients)
        assigned, nobodys = self._directory.split(everyone)
        if nobodys:
            raise RunStoppedError(f"The node that held client {nobodys[0]} left before all had agreed on classes.")
        inventories: dict[int, Inventory] = {}
        called: dict[int, set[str]] = {}
        for node, said in self._ask(assigned, {}):
            with _sensible(node):
                inventories[node] = Inventory.read(said, assigned[node])
                self._check_claims(inventories[node])
                if said.get("own") is True:
                    called[node] = set(inventories[node].sites.values())
        self._check_names(called)
        told = [inventories[node] for node in sorted(inventories)]
        classes = agreement.choose(data.classes, told)
        wants_sums = agreement.wants_sums(data)
        sums: dict[int, Sums] = {}
        later: list[str] = []
        for node, said in self._ask(assigned, {"classes": list(classes), "sums": wants_sums}):
            with _sensible(node):
                later += read_notices(said)
                if wants_sums:
                    pixels = _num_train(inventories[node], classes) * data.image_size**2
                    sums[node] = Sums.read(said, pixels, data.channels)
        agreed = agreement.conclude(data, classes, told, [sums[node] for node in sorted(sums)])
        self._check_validation(agreed)
        everything = [*(text for each in told for text in each.notices), *agreement.left_out(classes, told)]
        for text in [*dict.fromkeys(everything), *sorted(set(later)), *agreement.alike(classes), *_said(agreed)]:
            self._notice(text)
        return agreed

    def _ask(
        self, assigned: Mapping[int, frozenset[int]], question: Mapping[str, Any]
    ) -> Iterator[tuple[int, dict[str, Any]]]:
        """Ask every node, and yield its answer; refusals of all of them are one."""
        questions = [
            Question(node, _KIND, {"agree": self._config_hash, "clients": sorted(clients), **question})
            for node, clients in assigned.items()
        ]
        deadline = time.monotonic() + self._experiment.engine.deadline_seconds
        answers: dict[int, dict[str, Any]] = {}
        refused: list[Refusal] = []
        for said in self._port.ask(questions, deadline, self._on_wait):
            node = said.node
            if said.error:
                raise RunStoppedError(f"Before the first round node {node} failed: {shortened(said.error)}")
            with _sensible(node):
                answers[node] = said.read()
                if why := answers[node].get("refused"):
                    refused.append(_refusal(why))
        if refused:
            raise Refusal(
                "; ".join(sorted(error.reason.rstrip(".") for error in refused)) + ".",
                key=refused[0].key,
                remedy=refused[0].remedy,
            )
        if silent := assigned.keys() - answers.keys():
            raise RunStoppedError(
                f"Before the first round node {min(silent)} did not answer within "
                f"{self._experiment.engine.deadline_seconds:g} s (engine.deadline_seconds)."
            )
        yield from sorted(answers.items())

    def _check_names(self, called: Mapping[int, set[str]]) -> None:
        """Refuse sites that cannot be told apart: classes, counts and refusals go by their names.

        Args:
            called: What nodes with data of their own call their sites.
        """
        for node, names in sorted(called.items()):
            for name in sorted(names):
                others = [other for other, theirs in called.items() if other != node and name in theirs]
                if not others and self._directory.may_be_called(node, name):
                    continue
                raise ExperimentError(
                    f"Node {node} calls its site {name}"
                    + (f", and so does node {others[0]}." if others else ", which is another site's name here."),
                    key="site-data",
                    remedy="Let each site's data file say a `name` of its own.",
                )

    def _check_claims(self, inventory: Inventory) -> None:
        """Raise `ValueError` for a client that has more to train on than it may claim."""
        for client, counts in inventory.counts.items():
            times, most = partition.repeats(self._experiment.data), self._directory.most_examples(client)
            claimed = times * sum(counts["train"].values())
            if most is not None and claimed > most:
                raise ValueError(f"client {client} has {claimed:,} training examples, and {most:,} were declared")

    def _check_validation(self, agreed: Agreement) -> None:
        """Refuse an end by validation data that no client has."""
        run = self._experiment.run
        num = agreed.table()[:, SPLITS.index("validation")].sum()
        for key, value in (("run.until", run.until), ("run.patience", run.patience)):
            if value and not num:
                raise ExperimentError(
                    f"{key}={value} ends a run by validation data, and no site has any.",
                    key=key,
                    remedy="Set data.client_validation above 0, or let a site name a split of its own for it.",
                )


def _num_train(inventory: Inventory, classes: tuple[str, ...]) -> int:
    return sum(counts["train"].get(name, 0) for counts in inventory.counts.values() for name in classes)


@contextmanager
def _sensible(node: int) -> Iterator[None]:
    """End the run before it begins when what a node says is of another form than it should be."""
    try:
        yield
    except Refusal:
        raise
    except (ValueError, KeyError, TypeError, OverflowError) as error:
        raise RunStoppedError(
            f"Before the first round node {node} said of its data what cannot be: {shortened(str(error))}"
        ) from error


def _refusal(said: Mapping[str, str]) -> Refusal:
    return Refusal(shortened(str(said["reason"])), key=str(said["key"])[:80], remedy=shortened(str(said["remedy"])))


def keep(folder: Path, agreed: Agreement) -> None:
    """Write down what all agreed on."""
    write_sealed(folder / FILE, agreed.plain())


def _said(agreed: Agreement) -> Iterator[str]:
    """Say of each site what it takes part with."""
    table = agreed.table()
    names = sorted(set(agreed.sites.values()))
    for name in names[:_MOST_SITES]:
        own = [client for client, site in agreed.sites.items() if site == name]
        train, validation, test = table[own].sum((0, 2)).tolist()
        who = "1 client" if len(own) == 1 else f"{len(own)} clients"
        yield f"site {name}: {who}, {train:,} examples to train, {validation:,} to validate and {test:,} to test with."
    if len(names) > _MOST_SITES:
        yield f"And {len(names) - _MOST_SITES} sites more; {FILE} has all."


def summary(agreed: Agreement) -> dict[str, Any]:
    """Return what a run's summary says of its sites: examples of each class, and of each site, by split."""
    table = agreed.table()
    whole = table.sum(0)
    classes = {
        name: {split: int(whole[number, label]) for number, split in enumerate(SPLITS)}
        for label, name in enumerate(agreed.classes)
    }
    sites: dict[str, dict[str, Any]] = {}
    for client, site in agreed.sites.items():
        entry = sites.setdefault(site, {"clients": [], **dict.fromkeys(SPLITS, 0)})
        entry["clients"].append(client)
        for number, split in enumerate(SPLITS):
            entry[split] += int(table[client, number].sum())
    return {"classes": classes, "sites": sites}

"""How a federation is, in words: who is there, since when, with which clock and version, what runs, what is wrong."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from umbel.core.files import read_json
from umbel.core.names import shortened
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import fingerprint, read_public
from umbel.simulations.sites import authority
from umbel.simulations.sites.admission import nodes_by_key
from umbel.simulations.sites.diagnose import unreachable
from umbel.simulations.sites.flower_door import (
    AHEAD_SECONDS,
    BEHIND_SECONDS,
    ControlError,
    NodeEntry,
    RunEntry,
    connected,
)
from umbel.simulations.sites.folders import CA, SERVER_CERTIFICATE, kind_of, server_folder
from umbel.simulations.sites.join import Site
from umbel.simulations.sites.names import Address
from umbel.simulations.sites.register import Register, read_register
from umbel.simulations.sites.serve import is_active, last_lines
from umbel.simulations.sites.settings import SERVER, SITES, ServerSettings, read_settings
from umbel.simulations.sites.submit import noted
from umbel.simulations.sites.supervise import running
from umbel.simulations.sites.tunnel import Submitter

_AHEAD_SAID, _BEHIND_SAID = 3.0, 60.0  # seconds from which on a clock is spoken of; answers take some of their own


@dataclass(frozen=True)
class Row:
    """One site.

    Attributes:
        site: Its name.
        state: In a word: connected, gone, never seen, revoked.
        clients: Its client numbers.
        contact: When it last said that it is there.
        clock: Seconds that its clock is ahead, from the last run that greeted it.
        version: Its version of umbel, likewise.
    """

    site: str
    state: str
    clients: str = ""
    contact: str = ""
    clock: str = ""
    version: str = ""

    def cells(self) -> tuple[str, ...]:
        """Return its columns."""
        return (self.site, self.state, self.clients, self.contact, self.clock, self.version)


HEADS = ("site", "state", "clients", "last contact", "clock", "version")


@dataclass
class Status:
    """How something is.

    Attributes:
        title: What, in a line.
        rows: The sites.
        runs: What runs, a line each.
        problems: What is wrong, a sentence each.
    """

    title: str
    rows: list[Row] = field(default_factory=list)
    runs: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return it as lines; much of it sites and submitters have written."""
        lines = [shortened(self.title)]
        if self.rows:
            table = [HEADS, *(tuple(map(shortened, row.cells())) for row in self.rows)]
            widths = [max(len(cells[column]) for cells in table) for column in range(len(HEADS))]
            lines += [
                "  " + "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
                for cells in table
            ]
        lines += [shortened(run) for run in self.runs]
        lines += [f"! {shortened(problem)}" for problem in self.problems]
        return "\n".join(lines)


def status(folder: Path, control: Address | None = None) -> Status:
    """Return how a server, a site or a submitter's federation is.

    Args:
        folder: Whose folder.
        control: For a submitter: the Control API, where it is reached without a tunnel.

    Raises:
        Refusal: The folder is nobody's.
        TunnelError: The server cannot be reached by SSH.
    """
    folder = folder.expanduser().absolute()
    kind = kind_of(folder)
    if kind == "server":
        return of_server(server_folder(folder))
    return of_site(folder) if kind == "site" else of_submitter(folder, control)


def of_server(folder: Path) -> Status:
    """Return how a server is, as it is seen on its own machine."""
    settings = read_settings(folder / SERVER, ServerSettings)
    register = read_register(folder / SITES)
    entry = running(folder)
    problems = list(_certificates(folder / SERVER_CERTIFICATE, folder / CA))
    if entry is None:
        return Status(
            f"The server of {settings.federation} is down. Start it: umbel federate serve {folder}",
            [_row(name, None, register, {}, 0.0) for name in register.sites],
            problems=problems,
        )
    made = Status(f"The server of {settings.federation} is up (process {entry.pid}), port {settings.listen}.")
    made.problems = problems
    results = (folder / settings.results).absolute()
    active = [each for each in sorted(results.glob("*/")) if is_active(each)]
    greeted = _greeted(results)
    now = time.time()
    try:
        with connected(Address("127.0.0.1", settings.control_port), folder / CA) as control:
            by_key = nodes_by_key(control.nodes())
            runs = [run for run in control.runs(limit=20) if not run.finished]
    except ControlError as error:
        made.problems.append(str(error))
        return made
    for name, site in register.sites.items():
        node = by_key.get(fingerprint(read_public(site.key)))
        made.rows.append(_row(name, node, register, greeted, now))
        made.problems += _problems(made.rows[-1], greeted.get(name, {}))
    made.runs = [_progress(each) for each in active] or [_waiting(run) for run in runs] or ["Nothing runs."]
    made.problems += _refused(active)
    return made


def of_site(folder: Path) -> Status:
    """Return how a site is."""
    site = Site(folder)
    entry = running(folder)
    name = f"{site.settings.name}, a site of {site.settings.federation}"
    problems = list(_certificates(folder / CA))
    if reason := unreachable(site.server, folder / CA):
        problems.append(reason)
    if entry is None:
        return Status(f"{name}: no node runs. Start it: umbel federate join {folder}", problems=problems)
    state = "connected" if entry.ready else "not connected yet"
    said = last_lines(folder / "logs" / "join.log", 3)
    return Status(f"{name}: its node runs (process {entry.pid}), {state}.", runs=said, problems=problems)


def of_submitter(folder: Path, control: Address | None = None) -> Status:
    """Return how the federation is, as a submitter sees it."""
    submitter = Submitter.read(folder, control)
    made = Status(f"The federation {submitter.settings.federation}, as {submitter.settings.name} sees it.")
    with submitter.way() as address:
        try:
            with connected(address, submitter.folder / CA) as api:
                nodes, runs = api.nodes(), api.runs(limit=10)
        except ControlError as error:
            made.problems.append(str(error))
            return made
    now = time.time()
    for node in nodes_by_key(nodes).values():
        state = _state(node)
        made.rows.append(Row(node.name or str(node.node_id), state, contact=_ago(node.last_contact, now)))
    mine = noted(submitter.folder)
    for run in runs:
        where = mine.get(str(run.run_id), {}).get("folder", "").rpartition("/")[2]
        signer = run.config.get("signer", "") or "nobody"
        made.runs.append(f"{where or run.run_id}: {run.config.get('experiment', '')} of {signer}, {run.status}")
    return made


def _row(name: str, node: NodeEntry | None, register: Register, greeted: Mapping[str, Any], now: float) -> Row:
    site = register.sites[name]
    if site.revoked:
        return Row(name, "revoked", site.clients)
    if node is None:
        return Row(name, "down" if not now else "not registered", site.clients)
    told = greeted.get(name, {})
    skew = told.get("clock_skew")
    clock = "" if skew is None else f"{skew:+.1f} s"
    return Row(name, _state(node), site.clients, _ago(node.last_contact, now), clock, str(told.get("version", "")))


def _state(node: NodeEntry) -> str:
    return {"online": "connected", "registered": "never seen", "offline": "gone"}.get(node.status, node.status)


def _ago(then: float | None, now: float) -> str:
    if then is None:
        return ""
    seconds = max(0.0, now - then)
    if seconds < 120:
        return f"{seconds:.0f} s ago"
    return f"{seconds / 60:.0f} min ago" if seconds < 7200 else f"{seconds / 3600:.0f} h ago"


def _problems(row: Row, told: Mapping[str, Any]) -> Iterable[str]:
    if row.state == "gone":
        yield f"{row.site} is gone ({row.contact}): its clients {row.clients} take no part."
    if row.state == "never seen":
        yield f"{row.site} has never connected: does `umbel federate join` run there, and does it say why not?"
    skew = told.get("clock_skew")
    if skew is not None and (skew > _AHEAD_SAID or -skew > _BEHIND_SAID):
        side, limit = ("ahead", AHEAD_SECONDS) if skew > 0 else ("behind", BEHIND_SECONDS)
        yield f"The clock of {row.site} is {abs(skew):.0f} s {side}; from {limit} s on it is turned away."


def _greeted(results: Path) -> dict[str, Mapping[str, Any]]:
    """Return what each site said of itself when it was last greeted."""
    told: dict[str, Mapping[str, Any]] = {}
    for file in sorted(results.glob("*/nodes.json"), key=lambda each: each.stat().st_mtime):
        for entry in _nodes(file).get("nodes", []):
            if isinstance(entry, dict) and entry.get("site"):
                told[str(entry["site"])] = entry
    return told


def _refused(active: Iterable[Path]) -> list[str]:
    """Return who was turned away in the runs that go on."""
    return [
        f"{folder.name}: {entry.get('reason', '')}"
        for folder in active
        for entry in _nodes(folder / "nodes.json").get("refused", [])
        if isinstance(entry, dict)
    ]


def _nodes(file: Path) -> dict[str, Any]:
    try:
        content = read_json(file)
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _progress(folder: Path) -> str:
    """Return how far a run is, by the end of its progress file."""
    round_, rounds, phase = 0, "?", "setting up"
    for line in last_lines(folder / "progress.jsonl", 400):
        if '"event": "round"' in line or '"event": "phase"' in line:
            entry = _json(line)
            round_ = int(entry.get("round", round_))
            rounds = str(entry.get("num_rounds", rounds))
            phase = str(entry.get("phase", "done"))
    return f"{folder.name}: round {round_} of {rounds}, {phase}."


def _json(line: str) -> dict[str, Any]:
    try:
        entry = json.loads(line)
    except ValueError:
        return {}
    return entry if isinstance(entry, dict) else {}


def _waiting(run: RunEntry) -> str:
    return f"Run {run.run_id} of {run.config.get('signer', '') or 'nobody'}: {run.status}."


def _certificates(*files: Path) -> Iterable[str]:
    for file in files:
        try:
            left = authority.certificate_times(file).days_left()
        except Refusal as error:
            yield str(error)
            continue
        if left <= 0:
            yield f"{file.name} ended {-left:.0f} days ago. Renew it: umbel federate renew"
        elif left < authority.SOON_DAYS:
            yield f"{file.name} ends in {left:.0f} days. Renew it: umbel federate renew"

"""One bad client never ends a run, nor changes what comes of the others: to the bit as if it had not been there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.end_to_end.faults.clients.lent import HARMLESS
from tests.end_to_end.faults.clients.shared import ENDS, TIMES
from tests.end_to_end.faults.clients.strategy import BAD, BAD_KINDS
from tests.helpers import small_run
from tests.places import ROOT
from umbel.server.listener import Listener
from umbel.simulations.api import RunResult

STRATEGY = "strategy.name=tests.end_to_end.faults.clients.strategy:Bad"
QUICK = {
    *("nothing", "1e308", "tensors of another class", "loss 10**400", "2.5 examples", "10**400 examples"),
    *("an error without words", "50 MB of text", "sys.exit(0)", "KeyboardInterrupt"),
    *("a tensor of a loss", "a fork", "a model in the payload", "another head", "an empty payload"),
    *("payload behind torch", "threads", "default dtype", "gradients off", "the path", "no variables"),
}
SECONDS = 3  # for a client that has no end; an honest one takes a hundredth of one


class Heard(Listener):
    """Who failed in which round, and why."""

    def __init__(self) -> None:
        self.reasons: dict[int, dict[int, str]] = {}

    def failure(self, round_: int, phase: str, client: int, node: int, reason: str) -> None:
        self.reasons.setdefault(round_, {})[client] = reason


def bad_run(folder: Path, *kinds: str, **options: object) -> tuple[RunResult, Heard]:
    heard = Heard()
    settings = {"run.rounds": 2, "evaluate.clients": -1, **options}
    overrides = [f"{key.replace('__', '.')}={value}" for key, value in settings.items()]
    chosen = f"strategy.kinds={json.dumps(kinds)}"
    return small_run(folder, STRATEGY, chosen, *overrides, listener=heard), heard


def outcome(result: RunResult) -> list[object]:
    """What comes of a run but for its name, its time and its framing, which is that of the first reply in a process."""
    summary = result.summary
    tensors = [summary[key]["tensors"] for key in ("bytes_up", "bytes_down")]
    return [*(summary[key] for key in ("weights_sha256", "metrics", "num_failures", "best_round")), *tensors]


@pytest.fixture(scope="module")
def absent(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    result, heard = bad_run(tmp_path_factory.mktemp("absent"))
    assert {round_: dict(failed) for round_, failed in heard.reasons.items()} == {
        round_: {BAD: "RuntimeError: absent"} for round_ in (1, 2)
    }
    return outcome(result)


def sampled(kinds: Iterable[str]) -> list[object]:
    """Kinds as parameters, most of them for `make test-all` only."""
    rest = (pytest.mark.exhaustive, pytest.mark.slow)
    return [pytest.param(kind, marks=() if kind in QUICK else rest) for kind in kinds]


@pytest.mark.parametrize("kind", sampled(kind for kind in BAD_KINDS if kind not in ENDS))
def test_inline_only_the_bad_client_fails(kind: str, absent: list[object], tmp_path: Path) -> None:
    limit = {"engine__client_seconds": SECONDS} if kind in TIMES else {}
    result, heard = bad_run(tmp_path, kind, **limit)
    assert {round_: set(failed) for round_, failed in heard.reasons.items()} == {1: {BAD}, 2: {BAD}}
    assert outcome(result) == absent
    assert 0 < len(heard.reasons[1][BAD]) < 1200 and heard.reasons[1][BAD].isprintable()


def test_a_client_that_is_bad_when_it_evaluates_is_left_out_of_that(tmp_path: Path) -> None:
    kinds = ("sys.exit(0)", "default dtype", "payload behind torch", "nothing")
    options = {"strategy.evaluates": "true", "run.rounds": len(kinds)}
    result, heard = bad_run(tmp_path, *kinds, **options)
    assert {round_: set(failed) for round_, failed in heard.reasons.items()} == {r: {BAD} for r in range(1, 5)}
    assert outcome(result) == outcome(bad_run(tmp_path, **options)[0])


def test_there_are_eighty_of_them() -> None:
    assert len(BAD_KINDS) >= 80


@pytest.fixture(scope="module")
def honest(tmp_path_factory: pytest.TempPathFactory) -> list[object]:
    result, heard = bad_run(tmp_path_factory.mktemp("honest"), *["an honest answer"] * 2)
    assert not heard.reasons
    return outcome(result)


@pytest.mark.parametrize("kind", sampled(HARMLESS))
def test_what_a_client_does_with_what_it_was_lent_does_no_harm(kind: str, honest: list[object], tmp_path: Path) -> None:
    result, heard = bad_run(tmp_path, kind, kind)
    assert not heard.reasons
    assert outcome(result) == honest


@pytest.mark.parametrize("what", ["state", "memory"])
def test_an_answer_and_a_memory_are_what_they_were_when_the_client_gave_them(what: str, tmp_path: Path) -> None:
    """And not what the model holds once others had it."""
    runs = [bad_run(tmp_path, *[f"{how} {what}"] * 2) for how in ("live", "copied")]
    assert not any(heard.reasons for _, heard in runs)
    live, copied = (outcome(result) for result, _ in runs)
    assert live == copied


def test_a_memory_that_is_changed_in_place_is_what_it_was_for_the_next_round(tmp_path: Path) -> None:
    heard = bad_run(tmp_path, *["memory in place"] * 3, run__rounds=3)[1]
    assert heard.reasons.keys() == {2, 3}
    assert all("its memory" in failed[BAD] for failed in heard.reasons.values())


@pytest.mark.parametrize("kind", ["Ctrl-C", "Ctrl-C swallowed"])
def test_a_request_to_stop_is_no_clients_to_answer(kind: str, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        bad_run(tmp_path, "an honest answer", kind, run__name="r", checkpoint__every=0)
    assert [folder.name for folder in (tmp_path / "r" / "checkpoints").iterdir()] == ["round-000001"]


@pytest.mark.exhaustive  # seconds that it takes until the time is up
def test_a_thread_of_the_users_has_deadlines_as_well(absent: list[object], tmp_path: Path) -> None:
    with ThreadPoolExecutor(1) as pool:
        result, heard = pool.submit(bad_run, tmp_path, "a loop", engine__client_seconds=SECONDS).result()
    assert "engine.client_seconds" in heard.reasons[1][BAD]
    assert outcome(result) == absent


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")  # Ray leaves open files to the garbage collector
@pytest.mark.usefixtures("no_cluster")
@pytest.mark.parametrize(
    "kinds",
    [
        pytest.param(("sys.exit(0)", "1e308", "default dtype", "payload behind torch"), id="a sample"),
        # Minutes: a round for each, and for those who end their worker three new ones.
        pytest.param(tuple(BAD_KINDS), id="all", marks=pytest.mark.exhaustive),
    ],
)
def test_on_ray_only_the_bad_client_fails(
    kinds: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One kind a round; a run inline with the client absent comes to the same."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))  # where the workers find the bad client
    options = {"run.rounds": len(kinds), "evaluate.every": 0, "checkpoint.every": 0}
    ray = {"engine.name": "ray", "engine.workers": 1, "engine.client_seconds": SECONDS}
    result, heard = bad_run(tmp_path / "ray", *kinds, **options, **ray)
    rounds = range(1, len(kinds) + 1)
    assert {round_: set(failed) for round_, failed in heard.reasons.items()} == {round_: {BAD} for round_ in rounds}
    for round_, kind in enumerate(kinds, 1):
        assert ("its worker died 3 times" in heard.reasons[round_][BAD]) == (kind in ENDS)
    inline, _ = bad_run(tmp_path / "inline", **options)
    assert outcome(result) == outcome(inline)

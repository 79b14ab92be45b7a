"""Which node holds which clients, and whose it is: who is refused, who stays, and what is told of it."""

from __future__ import annotations

import json
import time

import pytest

from tests.server.fakes import Greeted, node_of
from tests.server.test_sites import NORTH, SOUTH, site, write
from umbel.core.wire.identity import fingerprint, new_key
from umbel.server.errors import RunStoppedError
from umbel.server.nodes import NODES, Directory, Told
from umbel.server.sites import Sites

HONEST = {1: node_of(NORTH, range(4)), 2: node_of(SOUTH, range(4, 8))}
WHOLE = ({1: frozenset(range(4)), 2: frozenset(range(4, 8))}, [])


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"partitions": [1], "config_hash": "other"}, "composed the experiment other, the server hash"),
        ({"partitions": None, "config_hash": "hash"}, "cannot be read"),
        ({"partitions": [True], "config_hash": "hash"}, "True is no count"),
        ({"partitions": [-1], "config_hash": "hash"}, "-1 is no count"),
        ({"partitions": [1], "config_hash": None}, "cannot be read"),
        ({"partitions": [1], "config_hash": "hash", "examples": {"0": 3}}, "other clients than it holds"),
        ({"partitions": [1], "config_hash": "hash", "examples": {"1": 10**400}}, "is no count"),
        ({"partitions": [1], "config_hash": "hash", "examples": {"1": 0.5}}, "0.5 is no count"),
        ({"partitions": [1], "config_hash": "hash", "site": "north"}, "cannot be read"),
        ({"config_hash": "hash"}, "cannot be read"),
        (KeyError("experiment"), "KeyError: 'experiment'"),
    ],
    ids=range(11),
)
def test_nodes_that_are_refused(answer, reason):
    directory = Directory(Greeted({1: {"partitions": [0], "config_hash": "hash"}, 2: answer}), "hash", 2, 0.0)
    with pytest.raises(RunStoppedError, match="nobody holds the clients 1 of 2") as stopped:
        directory.wait()
    assert "Node 2 was refused" in str(stopped.value) and reason in str(stopped.value)


def test_a_client_that_two_nodes_hold_stays_with_the_one_that_came_first():
    held = {5: {"partitions": [0, 1], "config_hash": "hash"}, 7: {"partitions": [1, 2], "config_hash": "hash"}}
    port, told = Greeted(held), []
    directory = Directory(port, "hash", 3, 0.0, told=Told(told.append))
    directory.wait()
    assert directory.split([0, 1, 2]) == ({5: frozenset({0, 1}), 7: frozenset({2})}, [])
    assert directory.split([2, 9]) == ({7: frozenset({2})}, [9])
    port.answers[1] = {"partitions": [0, 1, 2], "config_hash": "hash"}
    directory.refresh()
    assert directory.split([0, 1, 2]) == ({5: frozenset({0, 1}), 7: frozenset({2})}, [])
    assert [line for line in told if "Node 1 says that it holds the clients 0-1, which node 5 held first" in line]
    del port.answers[5]  # it takes over what is nobody's any more
    directory.refresh()
    assert directory.split([0, 1, 2]) == ({7: frozenset({1, 2}), 1: frozenset({0})}, [])


def test_who_comes_while_the_server_waits_for_others_is_no_first():
    port = Greeted({5: {"partitions": [0, 1], "config_hash": "hash"}})
    directory = Directory(port, "hash", 4, 30.0)

    def more():
        port.answers[1 if 1 not in port.answers else 2] = {"partitions": [0, 1, 2, 3], "config_hash": "hash"}

    directory.wait(more)
    assert directory.split(range(4)) == ({5: frozenset({0, 1}), 1: frozenset({2, 3})}, [])


def test_a_server_without_a_list_says_that_it_knows_nobody():
    told = []
    Directory(Greeted({1: {"partitions": [0], "config_hash": "hash"}}), "hash", 1, 0.0, told=Told(told.append)).wait()
    assert told == ["The server has no list of sites (UMBEL_SITES): it knows nobody, and takes every node at its word."]


@pytest.fixture
def known(tmp_path):
    path = write(tmp_path / "sites.yaml", site(NORTH, "0-3", "max_examples: 20"), site(SOUTH, "4-7"))
    return Sites(path)


def directory_of(port, sites, told=None, folder=None):
    return Directory(port, "hash", 8, 0.0, "a run", sites, Told([].append if told is None else told.append, folder))


STRANGER = new_key()


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ({"partitions": list(range(8)), "config_hash": "hash"}, "it has no key"),
        (node_of(STRANGER, range(8)), f"its key {fingerprint(STRANGER)} is not on the list"),
        (node_of(STRANGER, range(4), of=NORTH), "says that it is the site site0 and has not signed"),
        (node_of(SOUTH, range(8)), "the site site1 claims the clients 0-3, which are not its own"),
        (node_of(NORTH, range(4)), "the key of the site site0 is in use by node 1, which stays"),
    ],
    ids=["no key", "a stranger's key", "another's name", "another's clients", "a key twice"],
)
@pytest.mark.parametrize("number", [3, 0], ids=["behind them", "before them by its number"])
def test_a_stranger_that_claims_clients_gets_none(known, answer, reason, number, caplog):
    port, told = Greeted(dict(HONEST)), []
    directory = directory_of(port, known, told)
    directory.wait()
    assert told == []
    port.answers[number] = answer
    for _ in range(3):
        directory.refresh()
    assert directory.split(range(8)) == WHOLE
    (line,) = told  # once
    assert line.startswith(f"Node {number} was refused: ") and reason in line
    assert line in [record.getMessage() for record in caplog.records if record.name == "umbel.server"]
    del port.answers[2]
    with pytest.raises(RunStoppedError, match=r"nobody holds the clients 4-7 of 8") as stopped:
        directory.wait()
    assert f"Node {number} was refused: " in str(stopped.value)


def test_a_greeting_that_was_recorded_is_of_no_use(known):
    recorded = {}

    def record(asked, node):
        recorded["answer"] = HONEST[1](asked, node)
        return recorded["answer"]

    directory = directory_of(Greeted({1: record, 2: HONEST[2]}), known)
    directory.wait()
    port, told = Greeted({1: lambda asked, node: recorded["answer"], 2: HONEST[2]}), []
    again = directory_of(port, known, told)  # to the same node, in another run or after a restart
    with pytest.raises(RunStoppedError, match="nobody holds the clients 0-3 of 8"):
        again.wait()
    assert "was recorded and is played again" in told[0]


def test_an_answer_that_a_site_gave_to_one_node_is_no_other_nodes(known):
    port = Greeted({2: HONEST[2], 3: lambda asked, node: HONEST[1](asked, 1)})  # handed on by a node in the middle
    with pytest.raises(RunStoppedError, match="has not signed this greeting"):
        directory_of(port, known).wait()


def test_claims_are_held_to_the_most_examples_of_a_site(known):
    many = {0: 3, 1: 21, 2: 5, 3: 6}
    port = Greeted({1: node_of(NORTH, range(4), examples=many), 2: HONEST[2]})
    with pytest.raises(RunStoppedError, match="client 1 has 21 training examples; it may claim 20"):
        directory_of(port, known).wait()
    port.answers[1] = node_of(NORTH, range(4), examples={**many, 1: 20})
    directory = directory_of(port, known)
    directory.wait()
    assert [directory.most_examples(client) for client in range(4)] == [3, 20, 5, 6]
    assert directory.most_examples(4) is None and directory.most_examples(99) is None  # nobody says, nobody has it
    port.answers[1] = HONEST[1]  # it does not say: what its site may claim at most
    directory = directory_of(port, known)
    directory.wait()
    assert directory.most_examples(0) == 20


def test_the_most_examples_of_a_site_count_each_once_whatever_number_of_tasks_show_it(known):
    many = {0: 100, 1: 5, 2: 5, 3: 101}  # 20 examples in each of 5 tasks are 100
    port = Greeted({1: node_of(NORTH, range(4), examples=many), 2: HONEST[2]})
    with pytest.raises(RunStoppedError, match="client 3 has 101 training examples; it may claim 20 in each of 5 tasks"):
        Directory(port, "hash", 8, 0.0, "a run", known, repeats=5).wait()
    port.answers[1] = node_of(NORTH, range(4), examples={**many, 3: 100})
    directory = Directory(port, "hash", 8, 0.0, "a run", known, repeats=5)
    directory.wait()
    assert [directory.most_examples(client) for client in range(4)] == [100, 5, 5, 100]
    write(known.path, site(NORTH, "0-3", "max_examples: 19"), site(SOUTH, "4-7"))
    directory.refresh()
    assert directory.split([0, 4]) == ({2: frozenset({4})}, [0])
    port.answers[1] = HONEST[1]  # it does not say
    directory = Directory(port, "hash", 8, 0.0, "a run", known, repeats=5)
    directory.wait()
    assert directory.most_examples(0) == 95


def test_a_key_that_comes_twice_is_asked_again_when_the_first_node_has_left(known):
    port = Greeted(dict(HONEST))
    directory = directory_of(port, known)
    directory.wait()
    port.answers[9] = HONEST[1]  # the site's node starts again; its old id stays for a while
    for _ in range(3):
        directory.refresh()
    assert directory.split(range(8)) == WHOLE and port.num_greeted[9] == 1
    del port.answers[1]
    directory.refresh()
    assert directory.split(range(8)) == ({2: frozenset(range(4, 8)), 9: frozenset(range(4))}, [])
    assert port.num_greeted == {1: 1, 2: 1, 9: 2}


def test_a_node_that_comes_back_under_its_own_id_is_asked_again(known):
    port = Greeted(dict(HONEST))
    directory = directory_of(port, known)
    directory.wait()
    del port.answers[1]
    directory.refresh()
    assert directory.split([0, 4]) == ({2: frozenset({4})}, [0])
    port.answers[1] = HONEST[1]
    directory.refresh()
    assert directory.split(range(8)) == ({2: frozenset(range(4, 8)), 1: frozenset(range(4))}, [])
    assert port.num_greeted[1] == 2


def test_a_site_that_is_revoked_goes_and_one_that_is_admitted_comes(known):
    port, told = Greeted(dict(HONEST)), []
    directory = directory_of(port, known, told)
    directory.wait()
    other = new_key()
    port.answers[3] = node_of(other, range(4))
    directory.refresh()
    write(known.path, site(NORTH, "0-3", "revoked: true"), site(SOUTH, "4-7"), site(other, "0-3"))
    directory.refresh()
    assert directory.split(range(8)) == ({2: frozenset(range(4, 8)), 3: frozenset(range(4))}, [])
    assert any(
        f"Node 1 was refused: the key of the site site0 ({fingerprint(NORTH)}) has been revoked" in line
        for line in told
    )
    write(known.path, site(SOUTH, "4-6"), site(other, "0-3"))
    directory.refresh()
    assert directory.split(range(8)) == ({3: frozenset(range(4))}, [4, 5, 6, 7])
    known.path.write_text("no list")
    directory.refresh()
    assert "What it said before holds" in told[-1] and directory.split([0, 4]) == ({3: frozenset({0})}, [4])


def test_the_runs_folder_says_who_is_there_and_who_was_refused(known, tmp_path):
    slow = node_of(SOUTH, range(4, 8), time=time.time() - 400)
    told, examples = [], dict.fromkeys(range(4), 5)
    port = Greeted({1: node_of(NORTH, range(4), examples=examples), 2: slow, 3: node_of(STRANGER, [0], of=NORTH)})
    directory_of(port, known, told, tmp_path).wait()
    content = json.loads((tmp_path / NODES).read_text())
    north, south = content["nodes"]
    since = north.pop("since")
    assert abs(since - time.time()) < 60
    expected = {"node": 1, "site": "site0", "key": fingerprint(NORTH), "clients": "0-3", "num_examples": 20}
    assert north == {**expected, "version": "0.1.0", "clock_skew": None}
    assert south["site"] == "site1" and -460 < south["clock_skew"] <= -400
    assert any("The clock of the site site1 is -40" in line for line in told)
    (refused,) = content["refused"]
    assert refused["node"] == 3 and refused["present"] and "has not signed" in refused["reason"]
    assert content["sites"] == str(known.path)


def test_many_strangers_are_told_of_in_the_log_and_not_in_the_report(known, caplog):
    port, told = Greeted(dict(HONEST)), []
    directory = directory_of(port, known, told)
    directory.wait()
    port.answers |= {number: node_of(STRANGER, range(8)) for number in range(100, 200)}
    directory.refresh()
    assert len(told) == 21 and "the server's log has all of it" in told[-1]
    assert sum("was refused" in record.getMessage() for record in caplog.records) == 100
    assert directory.split(range(8)) == WHOLE
    assert all("\x1b" not in line for line in told)


def test_what_a_stranger_says_cannot_write_to_a_terminal(known):
    said = {"partitions": [0], "config_hash": "hash", "site": {"key": "\x1b[2J" + "x" * 10_000, "signature": ""}}
    told = []
    with pytest.raises(RunStoppedError):
        directory_of(Greeted({**HONEST, 1: said}), known, told).wait()
    assert all("\x1b" not in line and len(line) < 1_000 for line in told) and "x1b[2J" in told[0]

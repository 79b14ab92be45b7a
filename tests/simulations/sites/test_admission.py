"""The SuperLink takes the keys and runs that `sites.yaml` has, whatever others of the server's machine tell it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.simulations.sites.control import Known, served
from umbel.conf.load import load
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import fingerprint, new_key, public_text, read_key, read_public
from umbel.simulations.sites import folders
from umbel.simulations.sites.admission import Admission
from umbel.simulations.sites.folders import CA, Plan
from umbel.simulations.sites.names import Address
from umbel.simulations.sites.submit import signed_config

PLAN = Plan("hospitals", ("fl.example.org",), {"north": "0", "south": "1"}, ("alice", "bob"))


@pytest.fixture
def federation(tmp_path: Path) -> Path:
    return folders.found_federation(tmp_path / "fl", PLAN)


@pytest.fixture
def known() -> Known:
    return Known()


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def admission(federation: Path, known: Known, said: list[str]) -> Iterator[Admission]:
    server = federation / "server"
    with served(known, server) as place:
        assert isinstance(place, Address)
        yield Admission(server / "sites.yaml", place, server / CA, said.append)


def test_the_keys_of_the_sites_are_taken_and_who_comes_is_named(
    federation: Path, admission: Admission, known: Known, said: list[str]
) -> None:
    admission.look()
    keys = {name: public_text(read_key(federation / "sites" / name / "site.key")) for name in ("north", "south")}
    assert known.taken() == keys
    assert said == ["north is taken, with the clients 0.", "south is taken, with the clients 1."]
    known.nodes[1].status = "online"
    admission.look()
    assert said[2:] == ["north is connected."] and admission.online == {"north"}
    known.nodes[1].status = "offline"
    admission.look()
    assert said[3:] == ["north is gone."]


def test_a_key_that_somebody_else_registers_is_not_taken_though_the_file_is_the_same(
    admission: Admission, known: Known, said: list[str]
) -> None:
    admission.look()
    key = public_text(new_key())
    known.add_node(key, "north\x1b[2J")
    known.add_node("no key at all", "")
    known.add_node("nor this", "")
    assert not admission.is_stale
    admission.look()
    assert set(known.taken()) == {"north", "south"}
    assert admission.online == set()
    assert said[2] == f"north\\x1b[2J is not taken: sites.yaml does not have the key {fingerprint(read_public(key))}."
    assert all(line.isprintable() for line in said)
    number = len(said)
    admission.look()
    assert len(said) == number


def test_a_site_whose_key_somebody_else_unregistered_is_named_once(
    admission: Admission, known: Known, said: list[str]
) -> None:
    admission.look()
    known.nodes[1].status = "unregistered"  # for good: the SuperLink takes no key twice
    for _ in range(3):
        admission.look()
    assert set(known.taken()) == {"south"}
    assert said[2:] == [
        "north is not taken: The SuperLink refuses: it was in use A key that was revoked once needs a successor: "
        "init --site."
    ]


def test_a_revoked_site_goes_and_a_damaged_file_changes_nothing(
    federation: Path, admission: Admission, known: Known, said: list[str]
) -> None:
    admission.look()
    folders.revoke(federation, "north")
    assert admission.is_stale
    admission.look()
    assert set(known.taken()) == {"south"} and said[-1] == "north is no longer taken: its key is unregistered."
    (federation / "server" / "sites.yaml").write_text("sites: [")
    for _ in range(2):
        admission.forget()  # the SuperLink has started again
        admission.look()
    assert set(known.taken()) == {"south"} and "What it said before holds." in said[-1]


def test_a_file_that_could_never_be_read_is_refused(federation: Path, admission: Admission, known: Known) -> None:
    (federation / "server" / "sites.yaml").write_text("sites: [")
    known.add_node(public_text(new_key()), "east")
    with pytest.raises(Refusal, match=r"sites\.yaml"):
        admission.look()
    assert set(known.taken()) == {"east"}


def run_of(federation: Path, signer: str, key: str) -> dict[str, str]:
    """The configuration of a run, signed with somebody's key."""
    return signed_config(read_key(federation / "submitters" / key / f"{key}.key"), signer, b"code", load("digits"), "")


def test_runs_are_stopped_that_no_submitter_signed_or_none_who_is_one_now(
    federation: Path, admission: Admission, known: Known, said: list[str]
) -> None:
    code = "5694d08a2e53ffcae0c3103e5ad6f6076abd960eb1f8a56577040bc1028f702b"  # SHA-256 of b"code"
    known.add_run(1, code, run_of(federation, "alice", "alice"))
    known.add_run(2, code, run_of(federation, "alice", "bob"))
    known.add_run(3, code, {"experiment": "x\x1b[2J"})
    known.add_run(4, code, {**run_of(federation, "bob", "bob"), "over-rides": "a", "over_rides": "b"})
    known.add_run(5, "0" * 64, run_of(federation, "alice", "alice"))
    known.add_run(6, code, run_of(federation, "bob", "bob"))
    for _ in range(2):
        admission.check_runs()
    assert known.stopped() == {2, 3, 4, 5}
    assert sorted(said) == [
        "Run 1 of alice: digits.",
        "Run 2 is stopped: the key of alice did not sign it.",
        "Run 3 is stopped: it is not signed.",
        "Run 4 is stopped: the key of bob did not sign it.",
        "Run 5 is stopped: the key of alice did not sign it.",
        "Run 6 of bob: digits.",
    ]
    folders.revoke(federation, "bob")
    admission.check_runs()
    assert known.stopped() == {2, 3, 4, 5, 6} and said[-1] == "Run 6 is stopped: 'bob' is no submitter of sites.yaml."
    folders.revoke(federation, "alice")  # the last one: then it is nobody, and not anybody
    admission.check_runs()
    assert known.stopped() == {1, 2, 3, 4, 5, 6}

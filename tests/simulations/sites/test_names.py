"""Names and addresses as an administrator writes them, and what a node's log means."""

from __future__ import annotations

import pytest

from umbel.core.refusal import Refusal
from umbel.simulations.sites.diagnose import answer_in_words
from umbel.simulations.sites.names import Address, address_of, check_name


@pytest.mark.parametrize("name", ["a", "st-mary", "x2", "a" * 40])
def test_a_name_is_small_letters_digits_and_hyphens(name: str) -> None:
    assert check_name(name, "a site") == name


@pytest.mark.parametrize("name", ["", "-a", "a-", "A", "a_b", "a/b", "..", "a b", "ä", "a" * 41, "a\n"])
def test_other_names_are_refused(name: str) -> None:
    with pytest.raises(Refusal, match="no name of a site"):
        check_name(name, "a site", "--site")


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("fl.example.org:9092", Address("fl.example.org", 9092)),
        ("[fd00::5]:1", Address("fd00::5", 1)),
        ("0.0.0.0:65535", Address("0.0.0.0", 65535)),
    ],
)
def test_an_address_is_read_and_written(text: str, address: Address) -> None:
    assert address_of(text) == address
    assert str(address) == text


@pytest.mark.parametrize("text", ["", "host", "host:", ":80", "host:0", "host:65536", "host:x", "host:-1"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(Refusal, match="no HOST:PORT"):
        address_of(text)


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('details = "Invalid timestamp"', "5 s ahead or 305 s behind"),
        ("[code: 2004] Failed to activate SuperNode.", "does not know this key, or it was revoked"),
        ('details = "Missing authentication metadata"', "none was sent"),
        ('details = "Invalid node ID"', "second `join`"),
    ],
)
def test_what_flower_answers_is_said_in_words(line: str, words: str) -> None:
    assert words in answer_in_words(f"2026-01-01 flwr DEBUG {line}")


def test_an_ordinary_line_means_nothing() -> None:
    assert answer_in_words("2026-01-01 umbel.node INFO node 1 is connected to fl:9092") == ""

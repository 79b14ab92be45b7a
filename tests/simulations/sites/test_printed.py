"""What sites, submitters and servers have written is shown as text: it moves no cursor and paints nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.simulations.sites.control import Known, served
from umbel.conf.load import load
from umbel.core.names import printable, shortened
from umbel.core.wire.identity import new_key, public_text
from umbel.server.errors import RunFailedError, RunStoppedError
from umbel.server.flower.printed import MARK
from umbel.server.listener import Listener
from umbel.simulations.sites import folders, logs, status
from umbel.simulations.sites.folders import Plan
from umbel.simulations.sites.join import Site
from umbel.simulations.sites.names import Address
from umbel.simulations.sites.serve import Server
from umbel.simulations.sites.submit import Follower, Submitted, run_log
from umbel.simulations.sites.tunnel import Submitter

EVIL = "\x1b]0;owned\x07\x1b[2J\u202e"


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Path:
    plan = Plan("hospitals", ("fl.example.org",), {"north": "0"}, ("alice",))
    return folders.found_federation(tmp_path_factory.mktemp("federation") / "fl", plan)


def test_several_lines_stay_several_and_an_indent_stays_one() -> None:
    text = f"one\n    two {EVIL}\n\tthree ü"
    assert printable(text) == "one\n    two \\x1b]0;owned\\x07\\x1b[2J\\u202e\n        three ü"
    assert shortened(text) == "one two \\x1b]0;owned\\x07\\x1b[2J\\u202e three ü"


def test_a_status_and_a_log_of_a_run_have_no_escapes(federation: Path) -> None:
    known = Known()
    known.add_node(public_text(new_key()), f"north{EVIL}", f"offline{EVIL}")
    known.add_run(7, "", {"experiment": f"digits{EVIL}", "signer": "x" * 10_000})
    known.log = f"    File app.py{EVIL}\nlast\n"
    folder = federation / "submitters" / "alice"
    with served(known, federation / "server") as place:
        assert isinstance(place, Address)
        text = status.status(folder, place).text()
        shown = list(run_log(Submitter.read(folder, place), "7", 5, follow=False))
    assert text.count("\\x1b[2J") == 3 and printable(text) == text
    assert max(map(len, text.splitlines())) <= 500
    assert shown == ["    File app.py\\x1b]0;owned\\x07\\x1b[2J\\u202e", "last"]


class Notices(Listener):
    def __init__(self) -> None:
        self.texts: list[str] = []

    def notice(self, text: str) -> None:
        self.texts.append(text)


def followed(federation: Path, *told: object) -> Notices:
    """What a listener hears of a run whose server prints lines of progress."""
    known, heard = Known(), Notices()
    known.add_run(7, "", {})
    known.runs[7].status.status = "finished"
    known.log = "".join(f"{MARK}{json.dumps(each)}\n" if isinstance(each, dict) else f"{each}\n" for each in told)
    with served(known, federation / "server") as place:
        assert isinstance(place, Address)
        submitter = Submitter.read(federation / "submitters" / "alice", place)
        Follower(submitter, Submitted(7), load("digits"), heard).follow()
    return heard


def test_what_a_server_tells_of_a_run_has_no_escapes(federation: Path) -> None:
    heard = followed(federation, {"event": "notice", "text": EVIL}, {"event": "end", "error": None})
    assert heard.texts == [printable(EVIL)]
    stopped = {"event": "end", "error": {"how": "stopped", "text": f"Waited.\nNode 1 {EVIL}"}}
    with pytest.raises(RunStoppedError) as why:
        followed(federation, stopped)
    assert str(why.value) == f"Waited.\nNode 1 {printable(EVIL)}"
    with pytest.raises(RunStoppedError) as why:
        followed(federation, f"Traceback{EVIL}")
    assert printable(str(why.value)) == str(why.value) and "Traceback\\x1b" in str(why.value)


LINES = ["[" * 100_000, f'{{"event": "{EVIL}', '["end"]', '{"event": "begin"}']


@pytest.mark.parametrize("line", LINES, ids=range(len(LINES)))
def test_a_line_of_progress_that_is_none_ends_the_following_in_words(federation: Path, line: str) -> None:
    with pytest.raises(RunFailedError, match="nothing that is known here") as failed:
        followed(federation, MARK + line)
    assert str(failed.value).isprintable() and len(str(failed.value)) <= 500


def test_logs_are_cut_as_the_settings_say_and_shown_without_escapes(federation: Path) -> None:
    both = {"server": federation / "server", "site": federation / "sites" / "north"}
    for kind, folder in both.items():
        file = folder / f"{kind}.yaml"
        lines = [line for line in file.read_text().splitlines() if not line.startswith("log_")]
        file.write_text("\n".join([*lines, "log_megabytes: 1", "log_files: 3", ""]))
    for folder, made in ((both["server"], Server(both["server"])), (both["site"], Site(both["site"]))):
        for _ in range(8):
            made.say("x" * (700 << 10))
        made.say(f"north {EVIL} is gone.")
        made.say.close()
        (first, second) = logs.log_files(folder)
        kept = sorted(first.parent.glob(f"{first.name}*"))
        assert len(kept) == 4 and max(file.stat().st_size for file in kept) < 1 << 20
        second.write_text("")
        (line,) = [each for each in logs.lines([first, second], 1, follow=False) if "gone" in each]
        assert line.isprintable() and "\\x1b[2J" in line

"""A process that is kept going, its log, and who may stop it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from umbel.core.refusal import Refusal
from umbel.simulations.sites import logs, supervise
from umbel.simulations.sites.supervise import Kept, Log, Voice

PRINTS = "import sys,time\nfor i in range(3): print('line', i, flush=True)\n"


@pytest.fixture
def log(tmp_path: Path) -> Iterator[Log]:
    made = Log(tmp_path / "logs" / "one.log", 1, 2)
    yield made
    made.close()


def kept(tmp_path: Path, log: Log, program: str, seen: list[str]) -> Kept:
    def on_line(line: str) -> bool:
        seen.append(line)
        return "1" not in line

    return Kept([sys.executable, "-c", program], tmp_path, {"OF_ITS_OWN": "yes"}, log, on_line)


def until(condition: object, seconds: float = 20.0) -> None:
    assert callable(condition)
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_its_output_is_read_by_lines_and_kept_but_for_what_is_not_worth_it(tmp_path: Path, log: Log) -> None:
    seen: list[str] = []
    process = kept(tmp_path, log, PRINTS + "import os; print(os.environ['OF_ITS_OWN'])", seen)
    process.start()
    until(lambda: process.look() is not None)
    assert seen == ["line 0", "line 1", "line 2", "yes"]
    assert log.path.read_text().splitlines() == ["line 0", "line 2", "yes"]


def test_it_is_started_again_later_each_time(tmp_path: Path, log: Log) -> None:
    process = kept(tmp_path, log, "import sys; sys.exit(3)", [])
    process.start()
    waits: list[float] = []

    def has_ended_twice() -> bool:
        if (status := process.look()) is not None:
            assert status == 3
            waits.append(process.seconds_to_start)
        return len(waits) == 2

    until(has_ended_twice)
    assert 0.5 < waits[0] <= 1.0 < waits[1] <= 2.0
    process.end()
    assert process.pid == 0


def test_a_log_does_not_grow_for_ever(log: Log) -> None:
    for _ in range(5):
        log.write("x" * (700 << 10))
    sizes = [file.stat().st_size for file in log.path.parent.iterdir()]
    assert len(sizes) == 3
    assert max(sizes) < 1 << 20


def test_what_strangers_bring_about_is_said_once_in_a_minute_and_not_too_much_of_it(
    log: Log, capsys: pytest.CaptureFixture[str]
) -> None:
    say = Voice(log, "hospitals")
    for number in range(1000):
        say.seldom(f"Somebody with the key {number % 300} was turned away.")
    say("north is connected.")
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 51 and len(set(lines)) == 51
    assert lines[48].endswith("the key 48 was turned away.") and "There is more of the kind" in lines[49]
    assert [line.partition("hospitals ")[2] for line in log.path.read_text().splitlines()] == [
        line.partition("  ")[2] for line in lines
    ]


SAYS = """
import sys
from pathlib import Path
from umbel.simulations.sites.supervise import Log, Voice
say = Voice(Log(Path(sys.argv[1]), 1, 1), "hospitals", 2000)
for number in range(1000):
    say(f"number {number}")
"""


def test_a_file_in_place_of_a_terminal_does_not_grow_for_ever_and_a_pipe_gets_all(tmp_path: Path) -> None:
    command = [sys.executable, "-c", SAYS, str(tmp_path / "serve.log")]
    with (tmp_path / "serve.out").open("wb") as file:
        subprocess.run(command, stdout=file, check=True)
    assert 1000 < (tmp_path / "serve.out").stat().st_size < 3000
    assert "number 999" in (tmp_path / "serve.log").read_text()
    assert len(subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()) == 1000


def test_a_line_without_end_is_read_in_pieces(tmp_path: Path, log: Log) -> None:
    seen: list[str] = []
    process = kept(tmp_path, log, "print('x' * 300_000)", seen)
    process.start()
    until(lambda: process.look() is not None)
    assert len(seen) == 5 and max(map(len, seen)) == 1 << 16


SUPERVISES = """
import sys
from pathlib import Path
from umbel.simulations.sites import supervise
folder = Path(sys.argv[1])
with supervise.supervisor(folder, "A node") as told:
    supervise.say_ready(folder)
    print("ready", flush=True)
    while not told():
        pass
print("ended", flush=True)
"""


@pytest.fixture
def another(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A process that supervises the folder."""
    process = subprocess.Popen(
        [sys.executable, "-c", SUPERVISES, str(tmp_path)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    with process:
        assert process.stdout.readline() == "ready\n"
        yield process
        process.kill()


def test_a_folder_has_one_supervisor_which_ends_when_it_is_asked(
    tmp_path: Path, another: subprocess.Popen[str]
) -> None:
    entry = supervise.running(tmp_path)
    assert entry is not None
    assert (entry.pid, entry.ready, entry.alive) == (another.pid, True, True)
    with pytest.raises(Refusal, match="A node runs in"), supervise.supervisor(tmp_path, "A node"):
        pass
    assert supervise.running(tmp_path) is not None  # the refused one took nothing away
    waits = threading.Thread(target=another.wait)
    waits.start()
    assert supervise.stop(tmp_path)
    waits.join()
    assert another.stdout is not None
    assert another.stdout.read() == "ended\n"
    assert another.returncode == 0
    assert supervise.running(tmp_path) is None
    assert not supervise.stop(tmp_path)


def test_a_supervisor_that_was_killed_holds_nothing(tmp_path: Path, another: subprocess.Popen[str]) -> None:
    os.kill(another.pid, signal.SIGKILL)
    another.wait()
    assert supervise.running(tmp_path) is None
    with supervise.supervisor(tmp_path, "A node"):
        entry = supervise.running(tmp_path)
        assert entry is not None
        assert (entry.pid, entry.ready) == (os.getpid(), False)


def test_a_command_in_the_background_that_is_refused_says_why(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match=r"no folder of a federation"):
        supervise.in_background(tmp_path, ["federate", "join", str(tmp_path)], tmp_path / "out")


def test_logs_are_followed_also_when_they_are_begun_anew(tmp_path: Path) -> None:
    file = tmp_path / "one.log"
    file.write_text("a north\nb south\nc north\n")
    assert list(logs.lines([file], 2, follow=False)) == ["b south", "c north"]
    assert list(logs.lines([file], 3, follow=False, site="north")) == ["a north", "c north"]
    lines = logs.lines([file], 1, follow=True)
    assert next(lines) == "c north"
    with file.open("a") as more:
        more.write("d\nhalf")
    assert next(lines) == "d"
    file.rename(tmp_path / "one.log.1")
    file.write_text("e\n")
    assert next(lines) == "e"

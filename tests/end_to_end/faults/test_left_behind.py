"""What others left or are at work on: locks, lines written by halves, states of federations that are stale."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path

import pytest

from umbel.core.files import write_json
from umbel.server.errors import RunStoppedError
from umbel.server.listener import PROGRESS_FILE
from umbel.server.lock import exclusive, is_free
from umbel.simulations.engines import federate, grpc_engine, processes
from umbel.simulations.engines.federate import Federation


def test_one_process_at_a_time_works_on_a_run(tmp_path):
    with exclusive(tmp_path):
        assert not is_free(tmp_path)
        with pytest.raises(RunStoppedError, match="Another process is at work on"), exclusive(tmp_path, 0.2):
            pass
    assert is_free(tmp_path)


def test_a_line_that_is_written_by_halves_waits_for_its_end(tmp_path):
    file = tmp_path / PROGRESS_FILE
    file.write_bytes(b'{"old": 1}\n')
    progress = grpc_engine._Progress(file)
    whole = '{"event": "é"}\n'.encode()
    for cut in (whole[:11], whole[11:13]):  # in the middle of a letter
        with file.open("ab") as out:
            out.write(cut)
        assert progress.lines() == []
    with file.open("ab") as out:
        out.write(whole[13:] + b"{")
    assert progress.lines() == [whole.decode().strip()]


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen(["sleep", "60"], start_new_session=True)
    yield process
    process.kill()
    process.wait()


def stale(home: Path, pid: int, born: int) -> None:
    state = Federation(str(home), 1, 2, pid, (pid,), False, (born, born))
    write_json(home / federate.STATE, asdict(state))


def test_down_leaves_a_stranger_alone_who_got_the_number_of_one_of_ours(tmp_path, stranger):
    born = processes.birth(stranger.pid)
    assert born > 0
    stale(tmp_path, stranger.pid, born - 10)
    assert federate.find(tmp_path) is None
    assert "No federation is up" in federate.status(tmp_path)
    assert federate.stop(tmp_path)
    assert stranger.poll() is None
    stale(tmp_path, stranger.pid, born)
    assert federate.find(tmp_path) is not None
    with pytest.raises(federate.FederationError, match="up already"):
        federate.start(1, tmp_path)
    assert federate.down(tmp_path) == "The federation is down."
    stranger.wait(5)  # which has been waited for already, so that nobody knows its exit code
    assert federate.down(tmp_path) == "No federation was up."


def test_a_state_file_that_cannot_be_read(tmp_path):
    (tmp_path / federate.STATE).write_text("{")
    with pytest.raises(federate.FederationError, match=r"cannot be read.*remove it"):
        federate.find(tmp_path)


def test_two_cannot_start_the_same_federation_at_once(tmp_path):
    with federate._one_at_a_time(tmp_path), pytest.raises(federate.FederationError, match="right now"):
        federate.start(1, tmp_path)

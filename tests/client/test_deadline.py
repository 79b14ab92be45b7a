"""A client's turn: what it raises, how long it takes, and who asked to stop meanwhile."""

from __future__ import annotations

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from umbel.client.deadline import Attempt, attempt

UP = "it took longer than 0.05 s (engine.client_seconds)"


def raising(error: BaseException) -> Callable[[], None]:
    def act() -> None:
        raise error

    return act


def test_what_is_returned() -> None:
    assert attempt(lambda: 7, 60.0, "Client 1") == Attempt(7, "")
    assert attempt(lambda: None, 60.0, "Client 1") == Attempt(None, "")


@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("no"), KeyboardInterrupt("no"), GeneratorExit("no")])
def test_what_is_raised_is_a_failure(error: BaseException) -> None:
    assert attempt(raising(error), 60.0, "Client 1") == Attempt(None, f"{type(error).__name__}: no")


def endless() -> None:
    while True:
        pass


def stubborn() -> str:
    """Go on once when the time is up."""
    try:
        endless()
    except BaseException:  # noqa: BLE001 - that is what is wrong with it
        return "done"
    return ""


@pytest.mark.parametrize("act", [endless, lambda: time.sleep(1e6), stubborn])
def test_time_that_is_up(act: Callable[[], Any]) -> None:
    assert attempt(act, 0.05, "Client 1") == Attempt(None, UP, in_time=False)


def test_time_that_is_up_in_a_thread() -> None:
    made = []
    thread = threading.Thread(target=lambda: made.append(attempt(endless, 0.05, "Client 1")))
    thread.start()
    thread.join()
    assert made == [Attempt(None, UP, in_time=False)]


def test_a_module_is_imported_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else it would be half imported for all who come after."""
    (tmp_path / "slow_to_import.py").write_text("import time\ntime.sleep(0.3)\nDONE = True\n")
    monkeypatch.syspath_prepend(str(tmp_path))

    def act() -> None:
        import slow_to_import  # noqa: F401

        endless()

    assert not attempt(act, 0.05, "Client 1").in_time
    assert sys.modules["slow_to_import"].DONE


@pytest.fixture
def heard() -> Iterator[list[int]]:
    """Signals of a user, who has a timer of its own and wants to hear a request to stop."""
    signals: list[int] = []
    numbers = (signal.SIGALRM, signal.SIGTERM)
    before = {each: signal.signal(each, lambda number, frame: signals.append(number)) for each in numbers}
    timer = signal.setitimer(signal.ITIMER_REAL, 0)
    yield signals
    for number, handler in before.items():
        signal.signal(number, handler)
    signal.setitimer(signal.ITIMER_REAL, *timer)


def until(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(1e-3)


def test_the_timer_of_somebody_else_goes_on(heard: list[int]) -> None:
    signal.setitimer(signal.ITIMER_REAL, 0.02)
    assert attempt(lambda: until(lambda: heard), 60.0, "Client 1") == Attempt(None, "")  # while a client runs
    signal.setitimer(signal.ITIMER_REAL, 0.2)
    assert attempt(lambda: 7, 0.1, "Client 1").made == 7
    until(lambda: len(heard) > 1)  # and after it
    assert heard == [signal.SIGALRM] * 2


def test_a_request_that_is_answered_without_an_error_is_left_alone(heard: list[int]) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    assert attempt(lambda: signal.raise_signal(signal.SIGTERM), 60.0, "Client 1") == Attempt(None, "")
    assert heard == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) is handler


@pytest.mark.parametrize("swallowed", [False, True])
def test_a_request_to_stop_is_passed_on(swallowed: bool) -> None:
    def act() -> None:
        try:
            signal.raise_signal(signal.SIGINT)
        except KeyboardInterrupt:
            if not swallowed:
                raise RuntimeError("something else") from None

    with pytest.raises(KeyboardInterrupt):
        attempt(act, 60.0, "Client 1")
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.exhaustive  # four seconds, one between two interruptions
def test_somebody_is_told_of_a_client_that_does_not_end(caplog: pytest.LogCaptureFixture) -> None:
    """Every second it is interrupted, and does not mind."""

    def act() -> None:
        while not caplog.records:
            try:
                endless()
            except BaseException:  # noqa: BLE001 - that is what is wrong with it
                continue

    assert not attempt(act, 0.05, "Client 7").in_time
    assert "Client 7 goes on although its time is up" in caplog.text

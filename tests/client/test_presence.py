"""A node is there as long as its process is: busy, stopped, killed and started again."""

from __future__ import annotations

import signal
import subprocess
import time
from contextlib import contextmanager

import pytest

from tests.client.superlinks import busy_node, fleet_api
from tests.end_to_end.faults.helpers import until
from umbel.client.node.connection import Address, connect
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import new_key
from umbel.simulations.engines.processes import alive, descendants

pytestmark = pytest.mark.slow  # each starts Python two or three times


@contextmanager
def busy(address, folder):
    process = subprocess.Popen(busy_node(address, folder), stdin=subprocess.PIPE, stdout=subprocess.PIPE)
    try:
        assert process.stdout.readline().strip().isdigit()
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_node_that_has_no_time_for_heartbeats_is_there_and_one_that_is_stopped_is_not(tmp_path):
    with fleet_api() as (fleet, address), busy(address, tmp_path) as process:
        (activated,) = [peer for name, peer, _ in fleet.calls if name == "activate"]
        until(lambda: len([peer for peer in fleet.beats if peer != activated]) >= 5)
        ((beating, _),) = descendants([process.pid])
        process.send_signal(signal.SIGSTOP)
        time.sleep(0.5)  # one may be under way
        before = len(fleet.beats)
        time.sleep(1.5)
        assert len(fleet.beats) == before
        process.send_signal(signal.SIGCONT)
        until(lambda: len(fleet.beats) > before)
        process.kill()
        process.wait()
        until(lambda: not alive(beating))


def test_a_node_that_was_killed_has_left_when_the_next_one_comes(tmp_path):
    with fleet_api() as (fleet, address):
        with busy(address, tmp_path):
            pass  # killed
        assert [name for name, _, _ in fleet.calls] == ["register", "activate"]
        assert [path.stat().st_mode & 0o777 for path in tmp_path.glob("*.json")] == [0o600]  # it has the node's key
        with connect(Address(address, insecure=True, presence=tmp_path)):
            names = [(name, what) for name, _, what in fleet.calls[2:]]
            assert names[:2] == [("deactivate", 1), ("unregister", 1)]
            assert [name for name, _ in names[2:]] == ["register", "activate"]
        assert [(name, what) for name, _, what in fleet.calls[6:]] == [("deactivate", 2), ("unregister", 2)]
        assert not list(tmp_path.glob("*.json"))
        with connect(Address(address, insecure=True, presence=tmp_path)):  # nothing is left to be said
            assert [name for name, _, _ in fleet.calls[8:]] == ["register", "activate"]


@pytest.mark.exhaustive  # three seconds between leave and return, so that the server sees it gone
def test_a_site_comes_back_as_the_node_that_it_was_and_never_twice(tmp_path):
    place = Address("", insecure=True, key=new_key(), presence=tmp_path)
    with fleet_api() as (fleet, address):
        here = Address(address, insecure=True, key=place.key, presence=tmp_path)
        with connect(here):
            with pytest.raises(Refusal, match="A node with this key runs here already"), connect(here):
                pass
            (note,) = tmp_path.glob("*.json")
            kept = note.read_text()
            assert "PRIVATE" not in kept
        note.write_text(kept)  # as if it had been killed
        with connect(here):
            assert [name for name, _, _ in fleet.calls] == ["activate", "deactivate", "deactivate", "activate"]
            with connect(Address(address, insecure=True, key=new_key(), presence=tmp_path)):
                pass  # another site on the same machine
    assert not list(tmp_path.glob("*.json"))

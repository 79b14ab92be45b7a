"""Strangers at the door of a federation: none gets a client, no bit changes, and each is named.

The reason why this takes ten seconds and more: real processes, which load Flower and torch.
"""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import contextmanager

import pytest

from tests.end_to_end.faults.helpers import SMALL, slow, until
from umbel import run
from umbel.core.wire.identity import new_key, public_text, read_key, write_key
from umbel.server.listener import Listener
from umbel.simulations.engines import federate, processes
from umbel.simulations.engines.identities import KEY_FILE, make_identities
from umbel.simulations.engines.processes import flower_environment
from umbel.simulations.sites import authority
from umbel.simulations.sites.flower_door import connected
from umbel.simulations.sites.names import Address

pytestmark = pytest.mark.filterwarnings("ignore")  # processes that outlive the call that started them

# Nodes that answer a greeting as their line says: (the key that they say they have, the one that signs, a challenge
# that they have recorded). They speak to the SuperLink by Flower's own connection, all in one process.
INTRUDERS = """
import json, sys, time
from contextlib import ExitStack
from pathlib import Path
from flwr.app import ConfigRecord, Message, RecordDict
from flwr.client.grpc_rere_client.connection import grpc_request_response
from flwr.supercore.retry import make_simple_grpc_retry_invoker
from umbel.client.node.flower_common import Calls, FlowerConnection
from umbel.core.wire.identity import fingerprint, greeting_signature, read_key

def key(path):
    return read_key(Path(path)) if path else None

with ExitStack() as stack:
    nodes = []
    for said, signs, challenge in json.loads(sys.argv[2]):
        calls = grpc_request_response(sys.argv[1], True, make_simple_grpc_retry_invoker())
        nodes.append((FlowerConnection(Calls(*stack.enter_context(calls))), key(said), key(signs), challenge))
    print("here", *[connection.node_id for connection, *_ in nodes], flush=True)
    while True:
        for connection, said, signs, challenge in nodes:
            if (message := connection.receive()) is None:
                continue
            asked = json.loads(message.content["umbel"]["json"])
            answer = {"partitions": list(range(4)), "config_hash": asked["hello"]}
            if signs is not None:
                asked = {**asked, "challenge": challenge or asked["challenge"]}
                signed = greeting_signature(signs, asked, connection.node_id, answer)
                answer["site"] = {**signed, "key": fingerprint(said)}
            content = RecordDict({"umbel": ConfigRecord({"json": json.dumps(answer)})})
            connection.send(Message(content, reply_to=message), 0.0)
        time.sleep(0.05)
"""


class Notices(Listener):
    def __init__(self):
        self.notices, self.failures = [], []

    def notice(self, text):
        self.notices.append(text)

    def failure(self, round_, phase, client, node, reason):
        self.failures.append((client, reason))


@contextmanager
def intruders(port, home, kinds):
    """Yield the numbers of nodes that answer as `kinds` say, in a process of their own."""
    command = [sys.executable, "-c", INTRUDERS, f"127.0.0.1:{port}", json.dumps(kinds)]
    process = subprocess.Popen(
        command, cwd=home, env=flower_environment(home), stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        word, *numbers = process.stdout.readline().split()
        assert word == "here"
        yield [int(number) for number in numbers]
    finally:
        process.kill()
        process.communicate()


@slow
def test_strangers_that_claim_all_clients_change_no_bit_and_are_named(federation, tmp_path):
    honest = run("digits", *SMALL, "run.rounds=2", f"run.results={tmp_path}").summary
    first, second = (str(federation / "nodes" / number / KEY_FILE) for number in "01")
    write_key(tmp_path / "stranger.key", new_key())
    stranger = str(tmp_path / "stranger.key")
    kinds = [
        ("", "", ""),  # no key
        (stranger, stranger, ""),  # a key of its own
        (first, stranger, ""),  # the name of a site
        (second, second, ""),  # another site's key, be it stolen: that site claims what is not its own
        (first, first, "00" * 32),  # a greeting of a site that was recorded
    ]
    heard = Notices()
    with intruders(federate.find(federation).fleet_port, tmp_path, kinds) as nodes:
        options = ("run.rounds=2", "engine.name=grpc", f"run.results={tmp_path}")
        done = run("digits", *SMALL, *options, listener=heard)
    assert done.summary["weights_sha256"] == honest["weights_sha256"]
    assert done.summary["num_failures"] == 0 and heard.failures == []
    reasons = [
        "it has no key",
        "is not on the list of sites",
        "says that it is the site node-0 and has not signed",
        "the site node-1 claims the clients 0-1, which are not its own",
        "is played again",
    ]
    with connected(Address("127.0.0.1", federate.find(federation).control_port), None) as door:
        log = "".join(text for text, _ in door.log(door.runs()[0].run_id))
    for node, reason in zip(nodes, reasons, strict=True):
        (line,) = [text for text in heard.notices if text.startswith(f"Node {node} was refused: ")]
        assert reason in line and line in log
    content = json.loads((done.path / "nodes.json").read_text())
    assert sorted(node["site"] for node in content["nodes"]) == ["node-0", "node-1"]
    assert {entry["node"] for entry in content["refused"]} == set(nodes)


def test_what_a_federation_on_this_machine_keeps_is_its_owners_alone(tmp_path):
    home = tmp_path / "home"
    folders = make_identities(home, 2)
    modes = {path.relative_to(home).as_posix(): path.stat().st_mode & 0o777 for path in home.rglob("*")}
    assert home.stat().st_mode & 0o777 == 0o700 and folders == [home / "nodes" / "0", home / "nodes" / "1"]
    assert modes.pop("nodes") & 0o077 == 0o055  # its parent is closed
    assert modes == {
        "sites.yaml": 0o600,
        "nodes/0": 0o700,
        "nodes/1": 0o700,
        "nodes/0/site.key": 0o600,
        "nodes/1/site.key": 0o600,
    }
    keys = [(folder / KEY_FILE).read_text() for folder in folders]
    make_identities(home, 2)
    assert not set(keys) & {(folder / KEY_FILE).read_text() for folder in folders}  # new ones each time


@contextmanager
def secured(home):
    """Yield a SuperLink with TLS and node authentication: its Fleet port, and its control API."""
    authority.make(home, "hospitals")
    server = new_key()
    write_key(home / "server.key", server)
    (home / "server.pem").write_bytes(authority.issue(home, server, ["127.0.0.1"]))
    fleet, control = processes.free_ports(2)
    command = [
        *("flower-superlink", "--ssl-certfile", str(home / "server.pem"), "--ssl-keyfile", str(home / "server.key")),
        *("--ssl-ca-certfile", str(home / "ca.pem"), "--enable-supernode-auth"),
        *("--disable-runtime-dependency-installation", "--fleet-api-type", "grpc-rere"),
        *("--fleet-api-address", f"127.0.0.1:{fleet}", "--host", "127.0.0.1", "--port", str(control)),
    ]
    (home / "logs").mkdir()
    superlink = processes.spawn(home, "superlink", command, tied=True)
    try:
        until(lambda: processes.opened(fleet) and processes.opened(control))
        with connected(Address("127.0.0.1", control), home / "ca.pem") as door:
            yield fleet, door
    finally:
        processes.terminate([(superlink.pid, 0)])


@slow
@pytest.mark.exhaustive  # half a minute: ten nodes, each of which loads Flower
def test_with_tls_and_keys_only_a_registered_key_under_the_right_authority_comes_in(tmp_path):
    home, other = tmp_path / "home", tmp_path / "other"
    for folder in (home, other):
        folder.mkdir()
    authority.make(other, "another federation")
    for name in ("site", "stranger"):
        write_key(tmp_path / f"{name}.key", new_key())
    with secured(home) as (fleet, door):
        text = public_text(read_key(tmp_path / "site.key"))
        door.register(text, "north")

        def node(name, *options):
            command = [sys.executable, "-m", "umbel.client.node.supernode", "--superlink", f"127.0.0.1:{fleet}"]
            return processes.spawn(
                home, name, [*command, *options, "--home", str(tmp_path / name), "--max-wait-time", "3"], tied=True
            )

        def said(name):
            return processes.tail(home, name, 100)

        trust = ("--root-certificates", str(home / "ca.pem"))
        site = (*trust, "--key", str(tmp_path / "site.key"))
        refused = {
            "no key": node("no-key", *trust),
            "a stranger's key": node("stranger", *trust, "--key", str(tmp_path / "stranger.key")),
            "another authority": node("authority", "--root-certificates", str(other / "ca.pem"), *site[2:]),
            "plaintext": node("plaintext", "--insecure", *site[2:]),
        }
        for reason, process in refused.items():
            assert process.wait(60) != 0, reason
        assert all("is connected to" not in said(name) for name in ("no-key", "stranger", "authority", "plaintext"))
        assert not any(entry.online for entry in door.nodes())

        first = node("first", *site)
        until(lambda: "is connected to" in said("first"))
        (entry,) = [entry for entry in door.nodes() if entry.online]
        assert entry.key.split() == text.split()
        elsewhere = node("elsewhere", *site)  # a copy of the key at another place: the first stays
        assert elsewhere.wait(60) != 0 and first.poll() is None

        first.kill()  # it comes again, as the node that it was, long before twenty seconds are over
        first.wait()
        again = node("first", *site)
        until(lambda: "is connected to" in said("first"), 15)
        assert "had not said goodbye" in said("first")
        assert [each.node_id for each in door.nodes() if each.online] == [entry.node_id]
        again.terminate()
        again.wait(30)
        assert not any(each.online for each in door.nodes())

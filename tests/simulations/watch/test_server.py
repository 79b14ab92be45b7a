"""What the server of `umbel watch` gives, to whom, and what it refuses."""

from __future__ import annotations

import contextlib
import http.client
import json
import re
import shutil
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.helpers import small_run
from tests.simulations.commands.command_line import start, umbel
from umbel.core.refusal import Refusal
from umbel.simulations.watch.paths import Shortener
from umbel.simulations.watch.server import LOOK_SECONDS, Server, address_of, bind, is_loopback
from umbel.simulations.watch.shelf import Shelf

EVIL = "<script>alert(1)<"  # a slash is in no name


@contextlib.contextmanager
def served(root: Path, host: str = "127.0.0.1") -> Iterator[int]:
    opened = bind(host, 0)
    port = opened.getsockname()[1]
    server = Server(Shelf(root), opened, host, 0.05)
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        yield port
    finally:
        server.end()
        thread.join(10)
        assert not thread.is_alive()


def get(port: int, path: str, method: str = "GET", **headers: str) -> tuple[int, dict[str, str], bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.putrequest(method, path, skip_host="Host" in headers, skip_accept_encoding=True)
    for name, value in headers.items():
        connection.putheader(name.replace("_", "-"), value)
    connection.endheaders()
    answer = connection.getresponse()
    body = answer.read()
    connection.close()
    return answer.status, {name.lower(): value for name, value in answer.getheaders()}, body


def until(ask: Callable[[], Any], seconds: float = 20.0) -> Any:
    end = time.monotonic() + seconds
    while not (answer := ask()):
        assert time.monotonic() < end
        time.sleep(0.02)
    return answer


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    top = tmp_path_factory.mktemp("top")
    run = small_run(top / "results", "run.name=run").path
    shutil.copytree(run, top / "results" / EVIL)
    (top / "secret.txt").write_text("nobody's business")
    return top / "results"


@pytest.fixture(scope="module")
def port(root: Path) -> Iterator[int]:
    with served(root) as number:
        until(lambda: len(json.loads(get(number, "/api/runs")[2])["runs"]) == 2)
        yield number


def test_the_page_holds_all_that_it_needs(port: int) -> None:
    status, headers, body = get(port, "/")
    page = body.decode()
    assert status == 200 and headers["content-type"] == "text/html; charset=utf-8"
    assert not re.search(r"""(src|href)=["']?(https?:)?//|@import|url\(""", page)
    policy = dict(part.strip().partition(" ")[::2] for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'" and policy["connect-src"] == "'self'"
    assert "unsafe" not in headers["content-security-policy"]
    assert policy["frame-ancestors"] == policy["base-uri"] == policy["form-action"] == "'none'"
    assert headers["x-content-type-options"] == "nosniff"
    assert " style=" not in page and not re.search(r"<[^>]+ on\w+=", page)  # the policy would not let them


def test_runs_and_one_run(port: int) -> None:
    told = json.loads(get(port, "/api/runs")[2])
    found = {row["name"]: row for row in told["runs"]}
    assert set(found) == {"run", EVIL} and told["whole"] and not told["waiting"]
    since = json.loads(get(port, f"/api/runs?since={told['version']}&epoch={told['epoch']}")[2])
    assert not since["whole"] and not since["runs"]
    other = json.loads(get(port, f"/api/runs?since={told['version']}&epoch=another")[2])
    assert other["whole"] and len(other["runs"]) == 2
    one = json.loads(get(port, f"/api/run?id={found['run']['id']}")[2])
    assert [each["round"] for each in one["told"]] == [1, 2]
    rest = json.loads(get(port, f"/api/run?id={found['run']['id']}&after=1&generation={one['generation']}")[2])
    assert [each["round"] for each in rest["told"]] == [2]


def test_names_are_text_wherever_they_stand(root: Path, port: int) -> None:
    _, headers, body = get(port, "/api/runs")
    assert headers["content-type"] == "application/json" and EVIL.encode() in body
    evil = root.parent / "<script>alert(2)<"
    evil.mkdir()
    with served(evil) as number:
        page = get(number, "/")[2].decode()
        assert "<script>alert" not in page and "&lt;script&gt;alert(2)&lt;" in page
    evil.rmdir()


@pytest.mark.parametrize(
    "path",
    [
        "/../secret.txt",
        "/%2e%2e/secret.txt",
        "/run/summary.json",
        "/results/run/config.yaml",
        "//etc/passwd",
        "/api/run?id=../secret.txt",
        "/api/run?id=run",
        "/api/run?id=%2e%2e%2fsecret.txt%00",
        "/api/run?id=/etc/passwd",
        "/api/run",
        "/api/run?id=" + "a" * 5000,
        "/api",
    ],
)
def test_nothing_is_served_by_its_path(port: int, path: str) -> None:
    status, headers, body = get(port, path)
    assert status == 404 and b"business" not in body and b"root:" not in body
    assert "content-security-policy" in headers


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS"])
def test_it_only_reads(port: int, method: str) -> None:
    for path in ("/", "/api/runs", "/api/run"):
        assert get(port, path, method)[0] == 405


@pytest.mark.parametrize(
    "query",
    ["since=-1", "since=1e9", "since=%C2%B2", "since=" + "9" * 4000, "since=9&epoch=%ff", "x=%00", "since=3&x"],
)
def test_a_question_that_makes_no_sense_gets_everything(port: int, query: str) -> None:
    status, _, body = get(port, f"/api/runs?{query}")
    assert status == 200 and json.loads(body)["whole"]


def test_another_host_is_refused(port: int) -> None:
    for host in ("evil.example", f"evil.example:{port}", "localhost.evil.example", "10.1.2.3", "", "localhost:x", "["):
        status, _, body = get(port, "/api/runs", Host=host)
        assert status in (400, 421) and b"runs" not in body, host
    for host in (f"localhost:{port}", "localhost", "LOCALHOST:99", "127.0.0.1", "[::1]:80", "127.0.0.2"):
        assert get(port, "/api/runs", Host=host)[0] == 200, host


def test_on_all_addresses_any_address_and_the_own_name_will_do(root: Path) -> None:
    with served(root, "0.0.0.0") as port:
        for host in ("10.1.2.3:80", socket.gethostname(), "localhost"):
            assert get(port, "/", Host=host)[0] == 200, host
        assert get(port, "/", Host="evil.example")[0] == 421


def test_other_machines_are_not_shown_where_the_folder_lies(root: Path) -> None:
    bad = root.parent / "open"
    shutil.copytree(root / "run", bad / "run")
    (bad / "run" / "summary.json").unlink()
    (bad / "run" / "config.yaml").write_text("{")
    answers = []
    for host in ("127.0.0.1", "0.0.0.0"):
        with served(bad, host) as port:
            row = until(lambda port=port: json.loads(get(port, "/api/runs")[2])["runs"])[0]
            one = get(port, f"/api/run?id={row['id']}")[2].decode()
            answers.append((get(port, "/")[2].decode() + get(port, "/api/runs")[2].decode() + one, json.loads(one)))
    (alone, told), (opened, shown) = answers
    assert str(bad) in alone and told["path"] == str(bad / "run") and told["again"] == f"umbel resume {bad / 'run'}"
    assert str(root.parent) not in opened and shown["path"] == "run" and shown["again"] == ""
    assert shown["flaw"] and shown["state"] == "damaged"
    shutil.rmtree(bad)


def test_paths_in_texts_are_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    top = tmp_path / "my results"
    top.mkdir()
    short = Shortener(top).text
    assert short(f"[Errno 13] denied: '{top}/a/run.json'") == "[Errno 13] denied: 'a/run.json'"
    assert short(f"{top} is away") == ". is away" and str(tmp_path) not in short(f"{top}-2/x")
    assert short("No /home/ann/data/x.npz, see https://a.org/b/c") == "No .../x.npz, see https://a.org/b/c"
    assert short("test/accuracy of 1/2") == "test/accuracy of 1/2"
    monkeypatch.chdir(tmp_path)
    related = Shortener(Path("my results"))
    assert related.text("no 'my results/a/b': my results") == "no 'a/b': my results"
    assert related({"group": "my results/x", "runs": [{"path": "my results/x"}]}) == {
        "group": "my results/x",
        "runs": [{"path": "x"}],
    }
    assert Shortener(Path("/")).text("/home/ann/x") == ".../x"


@pytest.mark.parametrize("error", [OSError("away"), RecursionError("too deep"), ArithmeticError("odd")])
def test_looking_goes_on_after_any_error_and_the_page_is_told(
    root: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(self: Shelf) -> bool:
        raise error

    before = Shelf.look
    monkeypatch.setattr(Shelf, "look", fail)
    with served(root) as port:
        flaw = until(lambda: json.loads(get(port, "/api/runs")[2])["flaw"])
        assert flaw == f"{type(error).__name__}: {error}"
        monkeypatch.setattr(Shelf, "look", before)
        until(lambda: len(json.loads(get(port, "/api/runs")[2])["runs"]) == 2)
        until(lambda: not json.loads(get(port, "/api/runs")[2])["flaw"])


def test_large_answers_travel_compressed(port: int) -> None:
    assert get(port, "/", Accept_Encoding="gzip")[1]["content-encoding"] == "gzip"


def test_what_is_written_is_seen(root: Path) -> None:
    folder = root.parent / "fresh"
    folder.mkdir()
    with served(folder) as port:
        assert json.loads(get(port, "/api/runs")[2])["runs"] == []
        shutil.copytree(root / "run", folder / "late")
        until(lambda: json.loads(get(port, "/api/runs")[2])["runs"])
        shutil.rmtree(folder)
        until(lambda: not json.loads(get(port, "/api/runs")[2])["runs"])


def test_ports_and_addresses_that_cannot_be_had_are_refused() -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        number = taken.getsockname()[1]
        with pytest.raises(Refusal, match=f"Port {number} of 127.0.0.1 is taken") as refused:
            bind("127.0.0.1", number)
        assert refused.value.key == "--port" and "Give another --port" in refused.value.remedy
        assert address_of(taken, "127.0.0.1") == f"http://127.0.0.1:{number}/"
        assert address_of(taken, "0.0.0.0") == f"http://localhost:{number}/"
        assert address_of(taken, "::1") == f"http://[::1]:{number}/"
    for host in ("192.0.2.1", "no name", "a" * 70):
        with pytest.raises(Refusal, match="address") as refused:
            bind(host, 0)
        assert refused.value.key == "--host"
    assert [is_loopback(host) for host in ("127.0.0.1", "::1", "localhost", "0.0.0.0", "10.0.0.1", "box")] == [
        *[True] * 3,
        *[False] * 3,
    ]


def test_the_command_prints_and_opens_its_address_and_ctrl_c_ends_it(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    browser = tmp_path / "browser"
    browser.write_text(f'#!/bin/sh\necho "$1" > "{tmp_path}/part"\nmv "{tmp_path}/part" "{tmp_path}/opened"\n')
    browser.chmod(0o755)
    monkeypatch.setenv("BROWSER", str(browser))
    process = start("watch", root, "--port", "0", "--open")
    assert process.stdout is not None
    address = process.stdout.readline().strip()
    found = re.fullmatch(r"http://127\.0\.0\.1:(\d+)/", address)
    assert found, address
    until(lambda: len(json.loads(get(int(found[1]), "/api/runs")[2])["runs"]) == 2)
    until((tmp_path / "opened").is_file)
    assert (tmp_path / "opened").read_text().strip() == address
    kept = http.client.HTTPConnection("127.0.0.1", int(found[1]), timeout=10)
    kept.request("GET", "/")
    kept.getresponse().read()  # a browser keeps its connection
    process.send_signal(signal.SIGINT)
    rest, said = process.communicate(timeout=20)
    kept.close()
    assert process.returncode == 130 and "Stopped." in said and "Traceback" not in said and not rest


def test_the_command_refuses(root: Path) -> None:
    with contextlib.closing(bind("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words in ((root, "--port", port), (root / "gone",), (root, "--port", 0, "--host", "192.0.2.1")):
            done = umbel("watch", *words)
            assert done.exit_code == 2 and done.stderr.startswith("Error: "), done.output
    assert "a page" in umbel("--help").stdout and LOOK_SECONDS <= 2

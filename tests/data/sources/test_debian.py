"""Packages of Debian that are fetched into the cache."""

from __future__ import annotations

import gzip
import os
from pathlib import Path

import pytest

from umbel import data
from umbel.data.sources import debian


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and a machine without packages."""
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(debian, "ROOT", tmp_path / "no-root")
    return tmp_path / "cache"


@pytest.fixture
def tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An apt-get and a dpkg-deb of our own, in front of all others, and a log of what they were asked."""
    folder = tmp_path / "bin"
    folder.mkdir()
    log = tmp_path / "log"
    log.touch()
    apt = (
        f'#!/bin/sh\necho "$@" >> {log}\n'
        f'test -e {tmp_path}/offline && echo "E: no network" >&2 && exit 100\n'
        ': > "$2_1_all.deb"\n'
    )
    dpkg = (
        f"#!/bin/sh\ntest -e {tmp_path}/full && exit 2\n"
        "mkdir -p $3/usr/share/wordnet\necho x > $3/usr/share/wordnet/data\n"
    )
    for name, script in (("apt-get", apt), ("dpkg-deb", dpkg)):
        (folder / name).write_text(script)
        (folder / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}{os.pathsep}{os.environ['PATH']}")
    return log


WORDNET = debian.Package("wordnet-base", "usr/share/wordnet")


def test_a_package_is_fetched_once_without_a_password(tools: Path, home: Path) -> None:
    said: list[str] = []
    for _ in range(2):
        debian.fetch([WORDNET], None, "wordnet_glosses", said.append)
    assert tools.read_text() == "download wordnet-base\n" and len(said) == 2
    (folder,) = debian.folders([WORDNET], None, "wordnet_glosses")
    assert folder == home / "debian/wordnet-base/usr/share/wordnet" and (folder / "data").read_text() == "x\n"
    assert not list(home.rglob("*.deb"))


def test_a_fetch_that_fails_leaves_nothing(tools: Path, home: Path, tmp_path: Path) -> None:
    for trouble, said in (("offline", "E: no network"), ("full", "dpkg-deb --extract")):
        (tmp_path / trouble).touch()
        with pytest.raises(data.MissingDataError, match="sudo apt-get update") as caught:
            debian.fetch([WORDNET], None, "wordnet_glosses", print)
        assert said in str(caught.value)
        assert not [path for path in (home / "debian").iterdir() if path.is_dir()]
        (tmp_path / trouble).unlink()
    with pytest.raises(data.MissingDataError, match="laid out otherwise"):
        debian.fetch([debian.Package("wordnet-base", "usr/share/other")], None, "wordnet_glosses", print)


def test_without_apt_or_with_a_path_the_commands_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    for path in (None, str(tmp_path)):
        with pytest.raises(data.MissingDataError, match=r"sudo apt-get install --no-install-recommends wordnet-base"):
            debian.fetch([WORDNET], path, "wordnet_glosses", print)


def test_a_fingerprint_tells_one_state_from_another(tmp_path: Path) -> None:
    folder = tmp_path / "share" / "thing"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "x.png").write_bytes(b"123")
    (folder / "a.png").write_bytes(b"12")
    (folder / ".hidden.png").write_bytes(b"1")
    package = debian.Package("thing", "share/thing")

    def state() -> dict[str, object]:
        return debian.fingerprint(package, folder, debian.files(folder, [".png"]))

    first = state()
    assert [first[key] for key in ("package", "version", "files", "bytes")] == ["thing", "unknown", 2, 5]
    (tmp_path / "share/doc/thing").mkdir(parents=True)
    with gzip.open(tmp_path / "share/doc/thing/changelog.Debian.gz", "wt") as changes:
        changes.write("thing (1:2.0-3) unstable; urgency=low\n")
    assert state() == first | {"version": "1:2.0-3"}
    (folder / "a.png").rename(folder / "c.png")
    assert state()["listing"] != first["listing"] and state()["bytes"] == 5
    (folder / "d.png").symlink_to("nowhere.png")
    with pytest.raises(data.DamagedDataError, match=r"d\.png.*\n    sudo apt-get install --reinstall thing"):
        state()

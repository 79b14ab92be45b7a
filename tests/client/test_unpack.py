"""A bundle is unpacked whole or not at all."""

from __future__ import annotations

import io
import time
import zipfile
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab

from umbel.client.node.bundle import flower_name, unpack, unpack_anew
from umbel.conf.load import load
from umbel.simulations.engines import grpc_engine
from umbel.simulations.engines.app_folder import write_app
from umbel.simulations.engines.federate import Federation


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> bytes:
    return build_fab_from_disk(write_app(tmp_path_factory.mktemp("app")))


def test_nobody_sees_a_part(bundle, tmp_path, monkeypatch):
    extract = zipfile.ZipFile.extractall

    def slowly(archive, target):
        extract(archive, target, archive.namelist()[:1])
        time.sleep(0.2)
        extract(archive, target)

    monkeypatch.setattr(zipfile.ZipFile, "extractall", slowly)

    def one(turn: int) -> bool:
        time.sleep(0.05 * turn)
        folder = unpack(bundle, tmp_path, "app")
        return (folder / "pyproject.toml").is_file() and (folder / "client" / "app.py").is_file()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(4)))
    assert [path.name for path in tmp_path.iterdir()] == ["app"]  # and nothing is left of those who came late


def test_flower_takes_it_for_its_own(bundle, tmp_path, capsys):
    ours = unpack(bundle, tmp_path / "apps", flower_name(bundle))
    assert capsys.readouterr().out == ""
    (ours / "mark").touch()
    assert install_from_fab(bundle, tmp_path, skip_prompt=True) == ours
    assert (ours / "mark").is_file()  # Flower has installed nothing over it
    (ours / "mark").unlink()
    theirs = install_from_fab(bundle, tmp_path / "theirs", skip_prompt=True)
    assert theirs.name == ours.name
    assert contents(theirs) == contents(ours)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


def test_it_is_unpacked_once_and_again_when_its_files_are_not_the_bundles(bundle, tmp_path):
    once = unpack(bundle, tmp_path, "here")
    (once / "mark").touch()
    assert unpack(bundle, tmp_path, "here") == once and (once / "mark").is_file()
    changes = (
        lambda app: app.write_text("import os"),
        lambda app: app.unlink(),
        lambda app: (app.rename(tmp_path / "elsewhere.py"), app.symlink_to(tmp_path / "elsewhere.py")),
    )
    whole = (once / "client" / "app.py").read_bytes()
    for change in changes:
        change(once / "client" / "app.py")
        assert unpack(bundle, tmp_path, "here") == once
        assert (once / "client" / "app.py").read_bytes() == whole and not (once / "client" / "app.py").is_symlink()
    assert {path.name for path in tmp_path.iterdir()} == {"here", "elsewhere.py"}


def test_for_a_run_it_is_unpacked_where_nothing_was_before(bundle, tmp_path):
    folders = [unpack_anew(bundle, tmp_path, "here") for _ in range(2)]
    assert folders[0] != folders[1] and contents(folders[0]) == contents(folders[1])
    assert contents(folders[0]) == contents(unpack(bundle, tmp_path, "there"))
    assert all(folder.stat().st_mode & 0o077 == 0 for folder in folders)


@pytest.mark.parametrize("damage", [lambda b: b[: len(b) // 2], lambda b: b[:5000] + b"damaged" + b[5007:]])
def test_a_damaged_bundle_leaves_nothing(tmp_path, bundle, damage):
    with pytest.raises((zipfile.BadZipFile, zlib.error)):
        unpack(damage(bundle), tmp_path, "app")
    assert not list(tmp_path.iterdir())


def test_a_file_outside_is_refused(tmp_path):
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("../outside.py", "")
    with pytest.raises(click.ClickException, match="Unsafe path"):
        unpack(content.getvalue(), tmp_path / "apps", "app")
    assert not list((tmp_path / "apps").iterdir())
    assert not (tmp_path / "outside.py").exists()


def test_a_run_finds_its_bundle_whole_before_flower_is_asked(tmp_path, monkeypatch):
    """What two ServerApps that start together need: without it the first of them would install, file by file."""
    federation = Federation(str(tmp_path), 1, 2, 3, (4,), False, (5, 6))
    seen: list[list[str]] = []

    def asked(*_: object) -> dict[str, str]:
        seen.append([path.name for path in (tmp_path / "flwr" / "apps").glob("*/server/app.py")])
        return {"run-id": "7"}

    monkeypatch.setattr(grpc_engine, "_flwr", asked)
    assert grpc_engine._flwr_run(load("digits"), federation, tmp_path, resuming=False) == "7"
    assert seen == [["app.py"]]

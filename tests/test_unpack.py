"""A bundle is unpacked whole or not at all."""

from __future__ import annotations

import shutil
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor

import pytest
from flwr.cli.build import build_fab_from_disk
from flwr.cli.install import install_from_fab

from client.bundle import unpack
from simulations.grpc_engine import bundle_folder


@pytest.fixture(scope="module")
def bundle(tmp_path_factory) -> bytes:
    return build_fab_from_disk(bundle_folder(tmp_path_factory.mktemp("app")))


def test_nobody_sees_a_part(bundle, tmp_path, monkeypatch):
    copy = shutil.copy2

    def slowly(*arguments, **options):
        time.sleep(0.01)
        return copy(*arguments, **options)

    monkeypatch.setattr(shutil, "copy2", slowly)

    def one(_: int) -> bool:
        folder = unpack(bundle, tmp_path)
        return (folder / "pyproject.toml").is_file() and (folder / "client" / "app.py").is_file()

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(one, range(4)))
    assert len(list(tmp_path.iterdir())) == 1  # and nothing is left of those who came late


def test_flower_takes_it_for_its_own(bundle, tmp_path):
    ours = unpack(bundle, tmp_path / "apps")
    kept = ours.stat().st_ino
    assert install_from_fab(bundle, tmp_path, skip_prompt=True) == ours
    assert ours.stat().st_ino == kept


def test_a_given_name_is_kept(bundle, tmp_path):
    assert unpack(bundle, tmp_path, "here") == unpack(bundle, tmp_path, "here") == tmp_path / "here"


def test_a_damaged_bundle_leaves_nothing(tmp_path, bundle):
    with pytest.raises(zipfile.BadZipFile):
        unpack(bundle[: len(bundle) // 2], tmp_path)
    assert not list(tmp_path.iterdir())

"""Places and variables of a machine that stand in the way: said with the variable to set, or gone round."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.helpers import SMALL
from umbel.core.refusal import Refusal
from umbel.simulations.api import run
from umbel.simulations.engines.processes import MESSAGES_SECONDS, flower_environment
from umbel.simulations.engines.raylet import check_temporary_folder


def test_a_temporary_folder_that_is_too_long_for_rays_sockets_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("RAY_TMPDIR", raising=False)
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 34)  # 39 + 68 bytes of a socket's path are just 107
    check_temporary_folder()
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 36)
    with pytest.raises(Refusal, match="2 bytes too long") as refused:
        check_temporary_folder()
    assert "RAY_TMPDIR" in refused.value.remedy
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    check_temporary_folder()


def test_this_machine_is_asked_without_a_proxy(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("http_proxy", "http://proxy.example:3128")
    monkeypatch.delenv("no_proxy", raising=False)
    monkeypatch.setenv("NO_PROXY", "intern.example")
    environment = flower_environment(tmp_path)
    assert environment["no_proxy"] == environment["NO_PROXY"] == "intern.example,localhost,127.0.0.1,::1"
    assert environment["http_proxy"] == "http://proxy.example:3128"  # a SuperLink elsewhere may need it


def test_an_idle_superlink_looks_seldom_and_a_stock_node_often(tmp_path: Path) -> None:
    looks = [
        float(flower_environment(tmp_path, *given)["FLWR_SUPEREXEC_TASK_POLL_INTERVAL"])
        for given in ((), (MESSAGES_SECONDS,))
    ]
    assert 0.7 < looks[0] < 1.0  # below, a server takes more than 3 % of a core; above, a run begins late
    assert looks[1] <= 0.1


def test_a_home_that_cannot_be_written_is_told_of_the_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "home").write_text("no folder")
    monkeypatch.delenv("UMBEL_CACHE", raising=False)
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    with pytest.raises(Refusal, match="cannot be written") as refused:
        run("digits", *SMALL, "data.encoder=pca:4", "model.name=linear", "model.sizes={}", f"run.results={tmp_path}/r")
    assert "UMBEL_CACHE" in refused.value.remedy
    assert not list((tmp_path / "r").glob("*"))

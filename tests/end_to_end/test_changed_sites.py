"""Sites whose files change between a run and its resume, or between two runs of one process."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from tests.data.sites.makers import SIDE, folder, picture, site
from tests.helpers import bits
from umbel import resume, run
from umbel.server import agree
from umbel.server.listener import Listener
from umbel.simulations.report.page import report

pytestmark = pytest.mark.slow  # a few small runs each

EXPERIMENT = {
    "data": {"name": "sites", "num_clients": 2, "classes": "union", "image_size": SIDE, "channels": 3},
    "model": {"name": "cnn", "sizes": {"width": 4, "hidden": 16}},
    "client": {"epochs": 1, "batch_size": 4, "lr": 0.1},
    "run": {"rounds": 2},
    "checkpoint": {"every": 1},
}


class StopsBeforeTraining(Listener):
    """Stops a run when all have agreed."""

    def phase(self, round_: int, phase: str, num_clients: int) -> None:
        raise KeyboardInterrupt


class StopsAfterARound(Listener):
    """Stops a run after its first round."""

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def asked(tmp_path: Path) -> tuple[str, ...]:
    """An experiment of two sites, whose files are the test's own."""
    folder(tmp_path / "north", {"train/cat": 9, "train/dog": 7, "test/cat": 2})
    folder(tmp_path / "south", {"train/cat": 4, "train/zebra": 8, "test/zebra": 2})
    sites = [site(tmp_path / f"{name}.yaml", source="image_folder", path=name) for name in ("north", "south")]
    (tmp_path / "animals.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return (str(tmp_path / "animals.yaml"), f"data.sites=[{sites[0]}, {sites[1]}]", f"run.results={tmp_path / 'runs'}")


def darken(root: Path) -> None:
    """Put a dark picture in the place of a bright one, of the same name and class."""
    picture("ant", 0).save(root / "south" / "train" / "zebra" / "000.png")


def test_a_resume_goes_by_what_was_agreed_on(asked: tuple[str, ...], tmp_path: Path) -> None:
    """Also where a site's pictures would now make another mean: what all go by was said once."""
    with pytest.raises(KeyboardInterrupt):
        run(*asked, "run.name=stopped", listener=StopsBeforeTraining())
    stopped = tmp_path / "runs" / "stopped"
    before, agreed = (stopped / agree.FILE).read_bytes(), agree.kept(stopped)
    assert agreed is not None
    darken(tmp_path)
    again = resume(stopped)
    assert (stopped / agree.FILE).read_bytes() == before
    said = (f"data.mean={list(agreed.mean)}", f"data.std={list(agreed.std)}")
    assert bits(again) == bits(run(*asked, *said, "run.name=said"))
    anew = run(*asked, "run.name=anew")
    now = agree.kept(anew.path)
    assert now is not None and now.mean != agreed.mean and now.counts == agreed.counts
    assert bits(anew) != bits(again)


def test_what_changed_in_a_sites_files_is_read_again_in_the_same_process(
    asked: tuple[str, ...], tmp_path: Path
) -> None:
    whole = run(*asked, "run.name=whole")
    with pytest.raises(KeyboardInterrupt):
        run(*asked, "run.name=stopped", listener=StopsAfterARound())
    darken(tmp_path)
    again = resume(tmp_path / "runs" / "stopped")
    assert bits(again) != bits(whole)
    mended = run(*asked, "run.name=mended")
    assert bits(mended) not in (bits(whole), bits(again))
    picture("zebra", 0).save(tmp_path / "south" / "train" / "zebra" / "000.png")
    assert bits(run(*asked, "run.name=back")) == bits(whole)


def test_a_report_has_the_counts_of_sites_where_the_servers_pictures_are_gone(
    asked: tuple[str, ...], tmp_path: Path
) -> None:
    tested = folder(tmp_path / "tested", {"cat": 2, "zebra": 2})
    result = run(*asked, f"data.server={tested}", "run.rounds=1")
    tested.rename(tmp_path / "elsewhere")
    page = report([result.path]).read_text()
    assert "No picture:" not in page and "examples of each class at each client" in page
    for name, said in {
        "site north": "clients 0: 16 to train, 0 to validate, 2 to test with",
        "site south": "clients 1: 12 to train, 0 to validate, 2 to test with",
        "class cat": "13 to train, 0 to validate, 2 to test with",
        "class zebra": "8 to train, 0 to validate, 2 to test with",
    }.items():
        assert name in page and said in page
    (result.path / agree.FILE).unlink()
    page = report([result.path]).read_text()
    assert "No picture:" in page and "clients 1: 12 to train, 0 to validate, 2 to test with" in page

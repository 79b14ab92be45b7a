"""Sites with data of their own: refused by name, trained on whole, the same bits everywhere."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
import yaml
from click.testing import CliRunner

from tests.data.sites.makers import SIDE, folder, site
from tests.helpers import bits
from umbel import resume, run
from umbel.client.host import Clients, Host
from umbel.client.own_data import OwnData
from umbel.conf.federation import OwnSite, at_sites
from umbel.conf.load import load
from umbel.core.files import DamagedError
from umbel.core.memory import MemoryStore
from umbel.core.refusal import Refusal
from umbel.data.sites.agreement import Agreement
from umbel.data.sites.sums import Sums
from umbel.models import card
from umbel.server import agree, reading
from umbel.server.errors import RunStoppedError
from umbel.server.listener import Listener
from umbel.simulations.commands.main import main
from umbel.simulations.engines import federate

pytestmark = pytest.mark.slow  # a dozen small runs

NORTH = {"train/cat": 9, "train/dog": 7, "train/zebra": 5, "test/cat": 2, "test/zebra": 1}
SOUTH = {"east/ant": 4, "east/cat": 8, "west/cat": 3, "west/dog": 10}
EXPERIMENT = {
    "data": {
        "name": "sites",
        "num_clients": 3,
        "classes": ["cat", "dog", "zebra"],
        "image_size": SIDE,
        "channels": 3,
        "client_test": 0.2,
    },
    "model": {"name": "cnn", "sizes": {"width": 4, "hidden": 16}},
    "client": {"epochs": 1, "batch_size": 4, "lr": 0.1},
    "strategy": {"name": "scaffold"},
    "run": {"rounds": 3},
    "checkpoint": {"every": 1},
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A site with splits of its own, and one of two clients with a class that the experiment does not know."""
    root = tmp_path_factory.mktemp("sites")
    folder(root / "north", NORTH)
    folder(root / "south", SOUTH)
    site(root / "north.yaml", source="image_folder", path="north")
    content = {"name": "south", "source": "image_folder", "path": "south", "layout": "client/class"}
    site(root / "strange.yaml", **content)
    site(root / "south.yaml", **content, classes={"ant": None})
    (root / "animals.yaml").write_text(yaml.safe_dump(EXPERIMENT))
    return root


def options(place: Path, results: Path, second: str = "south") -> tuple[str, ...]:
    sites = f"data.sites=[{place / 'north.yaml'}, {place / second}.yaml]"
    return (str(place / "animals.yaml"), sites, f"run.results={results}")


@pytest.fixture(scope="module")
def inline(place: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of all three rounds on one machine."""
    return run(*options(place, tmp_path_factory.mktemp("inline")), "run.name=whole").path


def test_another_list_of_classes_is_refused_by_name_and_leaves_nothing(place: Path, tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="site south has class 'ant', which the experiment does not know"):
        run(*options(place, tmp_path, "strange"))
    assert not list(tmp_path.glob("*"))
    done = CliRunner().invoke(main, ["run", *options(place, tmp_path, "strange")])
    assert done.exit_code == 2
    assert "site south has class 'ant'" in done.output


def test_with_a_mapping_the_counts_are_right(inline: Path) -> None:
    summary = reading.summary(inline)
    held = summary["sites"]["south"]
    assert summary["sites"]["north"] == {"clients": [0], "train": 21, "validation": 0, "test": 3}
    assert (held["clients"], held["train"], held["validation"], held["test"]) == ([1, 2], 6 + 10, 0, 2 + 3)
    by_class = summary["classes"]
    assert {name: sum(splits.values()) for name, splits in by_class.items()} == {"cat": 22, "dog": 17, "zebra": 6}
    assert by_class["zebra"] == {"train": 5, "validation": 0, "test": 1}
    assert summary["num_failures"] == 0
    told = [json.loads(line) for line in (inline / "progress.jsonl").read_text().splitlines()]
    notices = [each["text"] for each in told if each["event"] == "notice"]
    assert "site south: left out 4 examples of its class 'ant'." in notices
    assert "site north: 1 client, 21 examples to train, 0 to validate and 3 to test with." in notices
    page = CliRunner().invoke(main, ["report", str(inline)])
    assert page.exit_code == 0, page.output
    assert "5 to train, 0 to validate, 1 to test with" in (inline / "report.html").read_text()


def test_a_client_trains_on_the_whole_of_its_split(place: Path, inline: Path, tmp_path: Path) -> None:
    agreed = agree.kept(inline)
    assert agreed is not None
    experiment = reading.experiment(inline)
    clients = Clients(Host(experiment, at_sites(experiment, agreed.shared())), MemoryStore(tmp_path))
    contexts = [clients.context(client, 1, "train", None, lambda record: None) for client in range(3)]
    assert [context.num_examples for context in contexts] == [21, 6, 10]
    labels = [torch.bincount(context.train_data.labels, minlength=3).tolist() for context in contexts]
    assert labels[0] == [9, 7, 5]
    assert labels == [[agreed.counts[c]["train"].get(name, 0) for name in agreed.classes] for c in range(3)]


def test_the_normalisation_is_that_of_all_training_pictures(inline: Path) -> None:
    agreed = agree.kept(inline)
    assert agreed is not None
    experiment = reading.experiment(inline)
    held = at_sites(experiment, agreed.shared())
    pixels = (
        torch.cat([held.client(client).train.images for client in range(3)]).double().transpose(0, 1).flatten(1) / 255
    )
    assert torch.allclose(torch.tensor(agreed.mean, dtype=torch.float64), pixels.mean(1), rtol=0, atol=1e-12)
    assert torch.allclose(
        torch.tensor(agreed.std, dtype=torch.float64), pixels.std(1, correction=0), rtol=0, atol=1e-12
    )
    assert (agreed.mean, agreed.std) == Sums.of(held, range(3)).statistics()


def test_the_model_says_what_it_was_trained_on(place: Path, inline: Path) -> None:
    agreed = agree.kept(inline)
    assert agreed is not None
    _, model_card = card.read(inline / "model.safetensors")
    assert model_card.classes == ("cat", "dog", "zebra")
    assert (model_card.mean, model_card.std) == (agreed.mean, agreed.std)
    assert (model_card.picture_size, model_card.picture_channels) == (SIDE, 3)
    done = CliRunner().invoke(main, ["predict", str(inline), str(place / "north" / "train")])
    assert done.exit_code == 0, done.output
    assert len(done.output.splitlines()) >= 21


def test_clients_evaluate_and_choose_the_best_round(place: Path, tmp_path: Path) -> None:
    result = run(*options(place, tmp_path), "data.client_validation=0.2", "run.patience=2")
    metrics = result.summary["metrics"]
    assert result.summary["best_round"] in (1, 2, 3)
    assert not [name for name in metrics if name.startswith(("test/", "validation/"))]
    assert {"clients/test/accuracy_mean", "clients/validation/accuracy_mean", "best/clients/test/accuracy"} <= set(
        metrics
    )
    with pytest.raises(Refusal, match=r"run.patience=2 ends a run by validation data, and no site has any"):
        run(*options(place, tmp_path), "run.patience=2")


def test_the_server_may_have_a_test_set(place: Path, tmp_path: Path) -> None:
    tested = folder(tmp_path / "tested", {"cat": 4, "zebra": 2})
    result = run(*options(place, tmp_path / "a"), f"data.server={tested}", "run.rounds=1", "evaluate.collapse=true")
    rows = result.metrics
    assert {"accuracy", "class/2/accuracy"} <= set(rows[(rows.side == "server") & (rows.split == "test")].metric)
    assert result.summary["weights_sha256"]
    folder(tested, {"ox": 0, "ant": 1})
    with pytest.raises(Refusal, match="has the class 'ant', which the sites do not have"):
        run(*options(place, tmp_path / "b"), f"data.server={tested}")
    assert not (tmp_path / "b").exists() or not list((tmp_path / "b").glob("*"))


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("data.server_validation=0.1",), "data.server_validation"),
        (("data.public=0.1",), "data.public"),
        (("data.partition=dirichlet",), "data.partition"),
        (("data.max_train=5",), "data.max_train"),
        (("data.encoder=pca:4",), "data.encoder"),
        (("data.path=.",), "data.path"),
        (("data.classes=[cat]",), "data.classes"),
        (("data.classes=cat",), "data.classes"),
        (("data.image_size=0",), "data.image_size"),
        (("data.channels=2",), "data.channels"),
        (("data.mean=[0.5]", "data.std=[0.2]"), "data.mean"),
        (("data.mean=[128, 128, 128]", "data.std=[50, 50, 50]"), "data.mean"),
        (("evaluate.collapse=true",), "evaluate.collapse"),
        (("data.sites=[]",), "data.sites"),
        (("run.until=validation/accuracy>=0.9",), "run.until"),
        (("strategy.name=creamfl",), "data.name"),
    ],
)
def test_what_needs_data_on_the_server_is_refused_before_the_start(
    overrides: tuple[str, ...], key: str, place: Path
) -> None:
    with pytest.raises(Refusal) as refused:
        load(*options(place, place)[:1], [*options(place, place)[1:], *overrides])
    assert refused.value.key == key


def test_keys_of_sites_have_no_part_elsewhere() -> None:
    with pytest.raises(Refusal, match=r"data.classes has a part in data.name=sites alone"):
        load("digits", ["data.classes=[a, b]"])


def test_the_server_holds_nothing_out_unless_asked(place: Path) -> None:
    assert load(*options(place, place)[:1], options(place, place)[1:]).data.server_validation == 0


def test_a_refusal_leaves_no_name_of_a_file_to_others(
    place: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder(tmp_path / "pictures", {"cat": 2, "dog": 2})
    (tmp_path / "pictures" / "cat" / "mrs-smith.png").write_bytes(b"")
    file = site(tmp_path / "north.yaml", source="image_folder", path="pictures")
    experiment = load(str(place / "animals.yaml"), ["engine.name=grpc"])
    own = OwnData(experiment, OwnSite(str(file), (0,)))
    assert own.answer({"clients": [0]})["counts"]["0"]["train"]
    said = own.answer({"clients": [0], "classes": ["cat", "dog", "zebra"], "sums": True})["refused"]
    assert said["reason"] == "site north: some of it cannot be read."
    assert "mrs-smith" in caplog.text
    unreadable = OwnData(experiment, OwnSite(str(tmp_path / "nowhere.yaml"), (0,)))
    assert "nowhere" not in json.dumps(unreadable.answer({"clients": [0]}))
    assert unreadable.declared([0]) == {}


class Stopper(Listener):
    """Stops a run after a round, as Ctrl-C does."""

    def round(self, round_: int, num_rounds: int, metrics: Mapping[str, float], seconds: float) -> None:
        raise KeyboardInterrupt


def test_a_resume_with_another_site_in_its_place_is_refused_by_name(place: Path, inline: Path, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(*options(place, tmp_path), "run.name=stopped", listener=Stopper())
    folder(tmp_path / "north", {**NORTH, "train/cat": 10})
    more = site(tmp_path / "north.yaml", source="image_folder", path="north")
    south = place / "south.yaml"
    for sites, reason in (
        (f"[{south}, {place / 'north.yaml'}]", "its client 0 is of the site south, and was of north"),
        (f"[{more}, {south}]", r"its client 0 \(site north\) had 9 examples of 'cat' to train on, and has 10"),
    ):
        with pytest.raises(RunStoppedError, match=reason):
            resume(tmp_path / "stopped", f"data.sites={sites}", "engine.node_timeout_seconds=1")
    again = resume(tmp_path / "stopped")
    assert again.summary["weights_sha256"] == reading.summary(inline)["weights_sha256"]


def test_a_damaged_agreement_is_named(inline: Path, tmp_path: Path) -> None:
    text = (inline / agree.FILE).read_text()
    (tmp_path / agree.FILE).write_text(text.replace('"cat"', '"car"'))
    with pytest.raises(DamagedError, match=r"agreed.json is damaged"):
        agree.kept(tmp_path)
    assert agree.kept(tmp_path / "elsewhere") is None
    assert isinstance(agree.kept(inline), Agreement)


# ---- other engines, and kills -------------------------------------------------------------------------------


@pytest.mark.processes
@pytest.mark.filterwarnings("ignore")
@pytest.mark.usefixtures("cluster")
@pytest.mark.parametrize("engine", ["processes", "ray"])
def test_workers_give_the_same_bits(engine: str, place: Path, inline: Path, tmp_path: Path) -> None:
    result = run(*options(place, tmp_path), f"engine.name={engine}", "engine.workers=2")
    assert bits(result) == reading.summary(inline)["weights_sha256"]


@pytest.fixture
def two_sites(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A SuperLink and two nodes, each of which knows its own folder alone; the second site has two clients."""
    monkeypatch.setenv("UMBEL_HOME", str(tmp_path / "home"))
    federate.start(2, tmp_path / "home", sites=[place / "north.yaml", place / "south.yaml"])
    yield tmp_path / "results"
    federate.stop(tmp_path / "home")


@pytest.mark.processes
@pytest.mark.exhaustive  # it starts a federation of its own, whose nodes have sites: half a minute
@pytest.mark.filterwarnings("ignore")
def test_two_nodes_with_their_own_folders_give_the_same_bits(place: Path, inline: Path, two_sites: Path) -> None:
    experiment = options(place, two_sites)[0]
    asked = (experiment, "data.sites=[]", "engine.name=grpc", f"run.results={two_sites}")
    result = run(*asked, "run.name=first")
    assert bits(result) == reading.summary(inline)["weights_sha256"]
    assert result.summary["sites"] == reading.summary(inline)["sites"]
    content = (two_sites / "first" / agree.FILE).read_text() + (two_sites / "first" / "progress.jsonl").read_text()
    assert str(place) not in content
    (place / "south.yaml").rename(place / "mapped.yaml")
    (place / "strange.yaml").rename(place / "south.yaml")
    try:
        with pytest.raises(Refusal, match="site south has class 'ant'"):
            run(*asked, "run.name=second")
    finally:
        (place / "south.yaml").rename(place / "strange.yaml")
        (place / "mapped.yaml").rename(place / "south.yaml")
    assert not (two_sites / "second").exists()


@pytest.mark.processes
def test_a_killed_run_goes_on_to_the_same_bits(place: Path, inline: Path, tmp_path: Path) -> None:
    command = [str(Path(sys.executable).parent / "umbel"), "run", *options(place, tmp_path), "run.name=killed"]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True)
    checkpoints, deadline = tmp_path / "killed" / "checkpoints", time.monotonic() + 120
    while not list(checkpoints.glob("round-*")) and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert resume(tmp_path / "killed").summary["weights_sha256"] == reading.summary(inline)["weights_sha256"]

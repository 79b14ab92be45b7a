"""The pages of the data sets are there for every name, say what was counted and probed, and show what may be shown."""

from __future__ import annotations

import copy
import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from tests.places import ROOT
from umbel.data.config import DataConfig
from umbel.data.errors import MissingDataError
from umbel.data.sets import registry
from umbel.data.texts import Texts
from umbel.data.types import DataSet, Examples

torch.set_num_threads(1)

PAGES = ROOT / "docs" / "data"
COUNTED = PAGES / "counted"
PICTURES = PAGES / "pictures"
PROBES = ROOT / "benchmarks" / "results" / "probe"
MAKE = runpy.run_path(str(ROOT / "docs" / "make_data.py"))
DRAW = runpy.run_path(str(PAGES / "draw.py"))
TABLES = runpy.run_path(str(ROOT / "benchmarks" / "probe_tables.py"))
ABOUT: dict[str, dict[str, Any]] = MAKE["about"]()
# Sets whose files are the same on every machine; what Debian packages depends on its release.
SAME_EVERYWHERE = ("digits", "emoji_domains", "emoji_pairs", "fashion_mnist", "mnist", "synthetic")


def read(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def text_of(name: str) -> str:
    return (PAGES / name).read_text(encoding="utf-8")


def test_every_name_has_a_page_or_a_row() -> None:
    index, papers = text_of("README.md"), text_of("papers.md")
    assert set(ABOUT) <= set(registry.names())
    for name in registry.names():
        if name in ABOUT:
            assert f"[{name}]({name}.md)" in index and (PAGES / f"{name}.md").is_file(), name
        else:
            row = f"| [{name}](papers.md) |" if f"| `{name}` |" in papers else f"| `{name}` |"
            assert row in index, name


@pytest.mark.parametrize("name", [*ABOUT, "README", "papers"])
def test_pages_are_those_of_the_files(name: str) -> None:
    """All numbers of a page come out of its JSON files, so equal pages have equal numbers."""
    assert MAKE["pages"]()[f"{name}.md"] == text_of(f"{name}.md"), "run python docs/make_data.py --pages"


def test_a_changed_number_changes_its_page() -> None:
    name = "digits"
    facts, probe = read(COUNTED / f"{name}.json"), read(PROBES / f"{name}.json")
    assert MAKE["page"](facts, ABOUT[name], [probe]) == text_of(f"{name}.md")
    for change in ("train", "classes", "accuracy"):
        counted, probed = copy.deepcopy(facts), copy.deepcopy(probe)
        if change == "train":
            counted["train"] += 1
        elif change == "classes":
            counted["classes"][3][1] += 1
        else:
            probed["probes"][0]["accuracy"][0][0][0] -= 0.01
        assert MAKE["page"](counted, ABOUT[name], [probed]) != text_of(f"{name}.md"), change


@pytest.mark.parametrize("name", SAME_EVERYWHERE)
def test_counts_are_those_of_the_set(name: str) -> None:
    try:
        data_set = registry.load(DataConfig(name=name), 0)
    except MissingDataError as error:
        pytest.skip(f"{name} is not on this machine: {error}")
    facts = MAKE["facts"](name, data_set, int(ABOUT[name].get("examples", 0)))
    assert json.loads(json.dumps(facts)) == read(COUNTED / f"{name}.json"), f"run python docs/make_data.py {name}"


@pytest.mark.parametrize("name", ABOUT)
def test_counts_add_up(name: str) -> None:
    facts = read(COUNTED / f"{name}.json")
    for column, split in ((1, "train"), (2, "test")):
        assert sum(row[column] for row in facts["classes"]) == facts[split] > 0
        assert not facts["domains"] or sum(row[column] for row in facts["domains"]) == facts[split]


@pytest.mark.parametrize("name", ABOUT)
def test_probes_are_of_these_sets(name: str) -> None:
    facts, files = read(COUNTED / f"{name}.json"), MAKE["probe_files"](name)
    assert files, f"run python benchmarks/probe.py --set {name} --json benchmarks/results/probe/{name}.json"
    for file in files:
        result = read(file)
        assert result["set"] == name and result["classes"] == len(facts["classes"])
        assert str(file.relative_to(ROOT)) in result["command"] and "\\\n" not in result["command"]
        for probe in result["probes"]:
            assert probe["columns"] == ([row[0] for row in facts["domains"]] or ["all"])
            if not (result["options"] or result["max_test"]):
                assert sum(probe["test"]) == facts["test"], "probe it again"
            for row in (*probe["accuracy"], *probe["balanced"]):
                assert all(len(cell) == result["seeds"] and 0 <= min(cell) <= max(cell) <= 1 for cell in row)


def test_no_probe_is_without_a_page() -> None:
    assert {path.stem.split("+")[0] for path in PROBES.glob("*.json")} <= set(ABOUT)


@pytest.mark.parametrize("name", ABOUT)
def test_pictures(name: str) -> None:
    path, page, facts = PICTURES / f"{name}.png", text_of(f"{name}.md"), read(COUNTED / f"{name}.json")
    assert path.stat().st_size <= 160_000
    with Image.open(path) as picture:
        picture.verify()
    shown = page.index(f"(pictures/{name}.png)")
    below = " ".join(page[shown : page.index("## ", shown)].split("<br>"))
    if ABOUT[name]["picture"] == "counts":
        return
    for line in facts["attribution"]:
        assert line in below, "the licence asks for its line right under the picture"


def test_what_may_not_be_passed_on_is_not_shown() -> None:
    for name in ("stamps", "movie_reviews", "mnist"):
        assert ABOUT[name]["picture"] == "counts" and ABOUT[name]["because"] and "examples" not in ABOUT[name]
    assert ABOUT["digits_domains"]["without"] == ["mnist"] and ABOUT["digits_domains"]["because"]
    for name, entry in ABOUT.items():
        licence = read(COUNTED / f"{name}.json")["licence"]
        if re.search(r"GPL|none stated", licence):
            assert entry["picture"] == "counts" or entry["without"], f"{name} is under {licence}"


def test_no_page_knows_the_machine() -> None:
    for path in [*PAGES.glob("*.md"), *COUNTED.glob("*.json"), *PROBES.glob("*.json")]:
        assert not re.search(r"/home/|/root|/work/|/tmp/", path.read_text(encoding="utf-8")), path.name


# --- the parts ------------------------------------------------------------------------------------


def test_tables_by_hand() -> None:
    probe = {
        "encoder": "lite0", "size": 96, "features": 1280, "rows": ["a", "b", "all of them"], "columns": ["a", "b"],
        "train": [1000, 20, 1020], "majority": [0.5, 0.25], "test": [10, 2000],
        "accuracy": [[[0.5, 0.7], [0.1, 0.1]], [[0.2, 0.4], [1.0, 1.0]], [[0.6, 0.6], [0.9, 0.9]]], "balanced": [],
    }  # fmt: skip
    search = {"images": "lite0", "texts": "minilm", "candidates": 1500, "chance": 1 / 150, "to_text": [0.5]}
    result = {"set": "made", "classes": 4, "probes": [probe], "retrieval": {**search, "to_image": [0.25]}}
    assert TABLES["tables"](result).splitlines() == [
        "`lite0` at 96 px, 1280 features: accuracy in %",
        "",
        "| trained on | examples | a | b |",
        "|---|---:|---:|---:|",
        "| a | 1,000 | 60.0 ± 14.1 | 10.0 ± 0.0 |",
        "| b | 20 | 30.0 ± 14.1 | 100.0 ± 0.0 |",
        "| all of them | 1,020 | 60.0 ± 0.0 | 90.0 ± 0.0 |",
        "| commonest class | | 50.0 | 25.0 |",
        "| tested on | | 10 | 2,000 |",
        "",
        "Recall at 10 in %, a ridge map from `lite0` to `minilm`, among 1,500 unseen concepts",
        "",
        "| image to text | text to image | chance |",
        "|---:|---:|---:|",
        "| 50.0 | 25.0 | 0.7 |",
    ]


def test_long_tables_sum_their_rest() -> None:
    rows = [["a", 5, 1], ["b", 4, 1], ["c", 3, 0], ["d", 2, 2]]
    assert MAKE["_cut"](rows, 4) == rows
    assert MAKE["_cut"](rows, 3) == [["a", 5, 1], ["b", 4, 1], ["2 more", 5, 2]]


def made() -> DataSet:
    """Three concepts of two classes by two vendors; a picture's shade is its example's number."""
    labels, concepts = torch.tensor([0, 0, 1, 0, 0, 1]), torch.tensor([0, 1, 2, 1, 0, 2])
    images = (torch.arange(6) * 40).to(torch.uint8)[:, None, None, None].expand(6, 1, 64, 64).contiguous()
    names = Texts.of(["sun", "moon", "car", "moon", "sun", "car"])
    train = Examples(images, labels, domains=torch.tensor([0, 0, 0, 1, 1, 1]), concepts=concepts, texts=names)
    return DataSet("made", train, train.take(torch.tensor([], dtype=torch.int64)), ("sky", "road"), ("a", "b"),
                   (0.0,), (1.0,), "none", attribution="One\nTwo")  # fmt: skip


def test_facts_by_hand() -> None:
    facts = MAKE["facts"]("synthetic", made(), examples=2)
    assert facts["line"] == registry.describe("synthetic") and facts["options"] == registry.options("synthetic")
    assert facts["classes"] == [["sky", 4, 0], ["road", 2, 0]] and facts["imbalance"] == 2
    assert facts["domains"] == [["a", 3, 0], ["b", 3, 0]] and facts["concepts"] == [3, 0]
    assert facts["attribution"] == ["One", "Two"] and facts["texts"] == {"distinct": 3, "words": 1, "longest": 1}
    assert [row[0] for row in facts["examples"]] == ["sky", "road"] and facts["examples"][1][1] == "car"


def test_a_column_shows_one_concept_in_all_styles() -> None:
    train = made().train
    for number in range(2):
        numbers = DRAW["_one_a_domain"](train, torch.tensor([0, 1, 3, 4]), [0, 1], number)
        assert len({train.concepts[n].item() for n in numbers}) == 1  # type: ignore[index]
        assert train.domains[torch.tensor(numbers)].tolist() == [0, 1]  # type: ignore[index]
    assert DRAW["_one_a_domain"](train, torch.tensor([0, 1]), [0, 1], 0) is None  # nothing of the second vendor
    assert DRAW["_one_a_domain"](train, torch.tensor([0, 1]), [0], 0) in ([0], [1])


def test_a_domain_is_left_out() -> None:
    both, one = DRAW["of_domains"](made()), DRAW["of_domains"](made(), without=["b"])
    assert both.height - one.height == DRAW["CELL"] + DRAW["GAP"]


def test_drawing_is_deterministic_and_small(tmp_path: Path) -> None:
    for kind in ("classes", "domains", "captions"):
        draw = DRAW[f"of_{kind}"]
        sizes = [DRAW["save"](draw(made()), tmp_path / name) for name in ("one.png", "two.png")]
        assert sizes[0] < 20_000
        assert (tmp_path / "one.png").read_bytes() == (tmp_path / "two.png").read_bytes()
    noise = torch.randint(0, 256, (400, 600, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    assert DRAW["save"](Image.fromarray(noise.numpy()), tmp_path / "large.png") < noise.numel() / 2


def test_captions_are_broken_into_lines_that_fit() -> None:
    lines = DRAW["wrapped"]("a rather long caption that takes many words and does not end", 90, 3, 11)
    assert len(lines) == 3 and lines[-1].endswith("...") and all(DRAW["width"](line, 11) <= 90 for line in lines)
    assert DRAW["wrapped"]("short", 90, 3, 11) == ["short"]
    assert DRAW["width"](DRAW["wrapped"]("one" * 40, 90, 3, 11)[0], 11) <= 90

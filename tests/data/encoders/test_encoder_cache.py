"""The cache is asked before an encoder is; whatever happens to it, the embeddings are the same."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from tests.data.encoders.samples import random_images
from tests.places import ROOT
from umbel.data.encoders import base, embed, progress
from umbel.data.texts import Texts

torch.set_num_threads(1)


def counting(calls: list[int], batch: int = 4, identity: str = "one") -> base.Plan:
    def opened() -> Callable[[Tensor], Tensor]:
        calls.append(0)

        def encode(images: Tensor) -> Tensor:
            calls.append(len(images))
            return images.flatten(1).float()[:, :2]

        return encode

    return base.Plan(2, {"identity": identity}, opened, batch)


def test_what_is_cached_is_not_encoded_again(cache: Path) -> None:
    images, calls = random_images(10, 1, 2, 2), list[int]()
    first = embed.images(images, counting(calls), "a set/train")
    assert calls == [0, 4, 4, 2] and torch.equal(first, images.flatten(1)[:, :2].float())
    assert torch.equal(embed.images(images.clone(), counting(calls), "a set/train"), first) and len(calls) == 4
    embed.images(images, counting(calls, identity="two"), "a set/train")  # another encoder
    assert len(calls) == 8
    changed = images.clone()
    changed[9, 0, 1, 1] += 1  # a byte that this encoder does not even look at
    embed.images(changed, counting(calls), "a set/train")
    assert len(calls) == 12
    embed.images(images.view(10, 1, 4, 1), counting(calls), "a set/train")  # the same bytes in another shape
    assert len(calls) == 16
    assert len(list((cache / "features").glob("a-set-train-*"))) == 4


def test_writing_into_embeddings_changes_no_cache() -> None:
    images, calls = random_images(6, 1, 2, 2), list[int]()
    embeddings = embed.images(images, counting(calls), "x")
    embeddings.zero_()
    assert embed.images(images, counting(calls), "x").any() and calls.count(0) == 1


def test_damage_is_made_again(cache: Path) -> None:
    images, calls = random_images(6, 1, 2, 2), list[int]()
    first = embed.images(images, counting(calls), "x").clone()
    (file,) = (cache / "features").glob("x-*/features.npy")
    content = bytearray(file.read_bytes())
    content[-1] ^= 255
    file.write_bytes(content)
    assert torch.equal(embed.images(images, counting(calls), "x"), first) and calls.count(0) == 2


def test_many_pieces_and_no_images() -> None:
    images = random_images(3 * 4096 + 5, 1, 1, 2)
    assert torch.equal(embed.images(images, counting([], batch=700), "x"), images.flatten(1).float())
    assert embed.images(images[:0], counting([]), "x").shape == (0, 2)


def test_progress_is_told() -> None:
    told: list[tuple[int, int]] = []
    embed.images(random_images(10, 1, 2, 2), counting([]), "x", lambda done, total: told.append((done, total)))
    assert told == [(4, 10), (8, 10), (10, 10)]


def test_a_bar_is_for_terminals_only(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with progress.reported(10, "what", None) as tell:
        tell(10, 10)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with progress.reported(10, "what it is", None) as tell:
        tell(10, 10)
    assert "what it is" in capsys.readouterr().err


def test_equal_texts_are_encoded_once_and_stand_where_they_stood() -> None:
    seen: list[str] = []

    def opened() -> Callable[[list[str]], Tensor]:
        def encode(texts: list[str]) -> Tensor:
            assert len(texts) <= 3
            seen.extend(texts)
            return torch.tensor([[float(len(text)), float(ord(text[0]))] for text in texts])

        return encode

    texts = ["bbb", "a", "éé", "a", "cccc", "bbb", "d", "aa"]
    told: list[int] = []
    plan = base.Plan(2, {}, opened, 3)
    embeddings = embed.texts(Texts.of(texts), plan, "x", lambda done, _total: told.append(done))
    assert embeddings.tolist() == [[len(text), ord(text[0])] for text in texts]
    assert seen == ["a", "d", "aa", "éé", "bbb", "cccc"] and told == [3, 6]


_WORKER = """
import sys, time, torch
from pathlib import Path
from umbel.data.encoders import base, embed
def opened():
    with open(sys.argv[1], "a") as file: file.write("opened\\n")
    def encode(images):
        time.sleep(float(sys.argv[2]))
        return images.flatten(1).float()
    return encode
while not Path(sys.argv[3]).exists(): time.sleep(0.02)
images = torch.arange(60, dtype=torch.uint8).view(20, 1, 3, 1)
features = embed.images(images, base.Plan(3, {"a": 1}, opened, 2), "x")
assert torch.equal(features, images.flatten(1).float())
print("right")
"""


def start_worker(log: Path, seconds: float, after: Path) -> subprocess.Popen[str]:
    root = ROOT
    command = [sys.executable, "-W", "error", "-c", _WORKER, str(log), str(seconds), str(after)]
    return subprocess.Popen(command, cwd=root, env=os.environ | {"PYTHONPATH": str(root)}, text=True, stdout=-1)


def test_two_processes_encode_once_and_a_kill_leaves_nothing(tmp_path: Path, cache: Path) -> None:
    log, first_log, go = tmp_path / "log", tmp_path / "first", tmp_path / "go"
    killed = start_worker(first_log, 60, after=tmp_path)  # holds the lock until it is killed
    both = [start_worker(log, 0.01, after=go) for _ in range(2)]
    # It makes the array first and opens the encoder then.
    while not (
        list((cache / "features").glob(".x-*.part/features.npy")) and first_log.is_file() and first_log.stat().st_size
    ):
        assert killed.poll() is None
        time.sleep(0.02)
    go.touch()
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [process.communicate()[0] for process in both] == ["right\n"] * 2
    assert first_log.read_text() == log.read_text() == "opened\n"
    assert not list((cache / "features").glob(".x-*.part"))

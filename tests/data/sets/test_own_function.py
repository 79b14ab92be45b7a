"""A data function of one's own: what it returns or raises is answered as a folder would be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from umbel import data
from umbel.data.config import DataConfig

Load = Callable[..., data.DataSet]

HEAD = """
import torch
from umbel.data import DataSet, Examples

def made(images=None, labels=None, names=("a", "b"), mean=(0.5,), std=(0.25,), **more):
    images = torch.rand(8, 1, 4, 4) if images is None else images
    labels = torch.arange(len(images)) % 2 if labels is None else labels
    examples = Examples(images, labels)
    return DataSet("mine", examples, examples, names, (), mean, std, "mine", **more)

"""


@pytest.fixture
def load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Load:
    """Return what loads a set by the body of its function."""
    name = "own_set_" + "".join(filter(str.isalnum, request.node.name))
    monkeypatch.syspath_prepend(tmp_path)

    def loaded(body: str, head: str = HEAD) -> data.DataSet:
        (tmp_path / f"{name}.py").write_text(f"{head}def load(config, seed):\n    {body}\n")
        return data.load(DataConfig(name=f"{name}:load"), 0)

    return loaded


def test_a_whole_set_says_nothing(load: Load) -> None:
    loaded = load("return made()")
    assert loaded.name == "mine" and len(loaded.train) == 8 and loaded.notices == ()


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return made(names=('a',), labels=torch.zeros(8).long())", r"expected two classes or more, found one \(a\)"),
        ("return made(names=('a', 'a'))", r"a name of its own for each class, found 'a' twice"),
        ("return made(labels=torch.arange(8) % 2 - 1)", r"every label of train in 0\.\.1, found -1\.\.0"),
        (
            "return made(labels=torch.rand(8))",
            r"labels of shape \[8\] and dtype int64, found \(8,\) and torch\.float32",
        ),
        ("return made(images=torch.rand(8, 1, 4, 4).numpy())", r"images as a torch\.Tensor, found ndarray\. Make one"),
        ("return made(images=torch.rand(8, 1, 4, 4) / 0)", r"8 of 8 examples of train have values that are not finite"),
        ("return made(images=torch.ones(8, 1, 4, 4).long())", r"uint8 or floating point, found torch\.int64"),
        ("return made(images=torch.rand(8, 1, 4, 4) * 255)", r"and the set says 0\.5 and 0\.25 .* Make images uint8"),
        ("return made(mean=(128.0,), std=(64.0,))", r"deviation 0\.\d+, and the set says 128 and 64 .* Make"),
        ("return made(images=torch.rand(0, 1, 4, 4))", r"no example is left for train"),
        ("return made(images=torch.rand(8, 1, 4, 6))", r"expected square images, found 4 x 6"),
        ("raise KeyError('site')", r"raised: KeyError: 'site' \(.*own_set.*\.py, line \d+\)\. Mend the"),
        ("raise SystemExit(0)", r"it ends the process \(.*own_set.*\.py, line \d+\)"),
        ("return None", r"expected a data\.DataSet, found NoneType"),
    ],
)
def test_what_cannot_be_learnt_from_is_refused(load: Load, body: str, message: str) -> None:
    with pytest.raises(data.DataError, match=message) as caught:
        load(body)
    assert (caught.value.key and caught.value.remedy) or "0..1" in caught.value.reason


def test_a_class_without_examples_is_said(load: Load) -> None:
    loaded = load("return made(names=('a', 'b', 'c'), notices=('two sites are missing',))")
    assert loaded.notices == (
        "two sites are missing",
        "mine: 1 of 3 classes have no example in train: c.",
        "mine: 1 of 3 classes have no example in test: c.",
    )


@pytest.mark.parametrize(
    ("head", "message"),
    [
        ("import sys; sys.exit(0)\n", r"Cannot import .*own_set\w+.*it ends the process \(.*\.py, line 1\)"),
        ("def broken(:\n", r"Cannot import .*SyntaxError: .*own_set\w+\.py, line 1\)"),
        ("1 / 0\n", r"Cannot import .*ZeroDivisionError: division by zero \(.*own_set\w+\.py, line 1\)"),
    ],
)
def test_a_module_that_cannot_be_imported(load: Load, head: str, message: str) -> None:
    with pytest.raises(data.DataError, match=message) as caught:
        load("return made()", head)
    assert caught.value.key == "data.name" and caught.value.remedy

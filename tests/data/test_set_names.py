"""Sets by name, a function of one's own, and settings that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from umbel import data
from umbel.core.names import UnknownNameError
from umbel.core.refusal import Refusal
from umbel.data.config import DataConfig


def test_names_have_lines_and_options() -> None:
    assert {"digits", "emoji_domains", "fashion_mnist", "hub:<owner/name>", "stamps"} < set(data.names())
    assert list(data.names()) == sorted(data.names())
    assert all("\n" not in data.describe(name) and data.describe(name) for name in data.names())
    assert data.options("synthetic")["num_examples"] == 6400
    assert "image_column" in data.options("hub:owner/name")


def test_unknown_names() -> None:
    with pytest.raises(UnknownNameError, match=r"Unknown data set 'digit' \(key data\.name\)\. Did you mean 'digits'"):
        data.check(DataConfig(name="digit"))
    with pytest.raises(UnknownNameError, match=r"\(key data\.options\.num_example\)\. Did you mean 'num_examples'"):
        data.check(DataConfig(name="synthetic", options={"num_example": 3}))
    with pytest.raises(UnknownNameError, match=r"augmentation 'flips' \(key data\.augment\)"):
        data.check(DataConfig(augment="flips"))
    with pytest.raises(UnknownNameError, match=r"partition 'iidd' \(key data\.partition\)"):
        data.check(DataConfig(partition="iidd"))


def test_a_function_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_own_set.py").write_text(
        "import dataclasses, data\n"
        "def load(config, seed):\n"
        "    data_set = data.load(dataclasses.replace(config, name='synthetic'), seed)\n"
        "    return dataclasses.replace(data_set, name='mine')\n"
        "def wrong(config, seed):\n"
        "    return 3\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = DataConfig(name="my_own_set:load", options={"num_examples": 20, "num_test": 5})
    data.check(config)
    assert data.load(config, 0).name == "mine"
    with pytest.raises(data.DataError, match=r"module 'my_own_set' has no 'other'"):
        data.check(DataConfig(name="my_own_set:other"))
    with pytest.raises(data.DataError, match=r"there is no module 'no_such_module'"):
        data.check(DataConfig(name="no_such_module:load"))
    with pytest.raises(data.DataError, match=r"expected a data\.DataSet, found int"):
        data.load(DataConfig(name="my_own_set:wrong"), 0)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"client_test": 1.0}, r"data\.client_test should be at least 0 and below 1, found 1\.0"),
        ({"client_test": 0.5, "client_validation": 0.5}, r"must be less than 1, found 1; a client must keep"),
        ({"server_validation": -0.1}, r"data\.server_validation should be at least 0"),
        ({"max_train": -1}, r"data\.max_train should be at least 0, found -1"),
        (
            {"name": "synthetic", "options": {"noise": -1}},
            r"data\.options\.noise must be a number of at least 0",
        ),
        (
            {"name": "synthetic", "options": {"image_size": 0}},
            r"data\.options\.image_size must be a whole number",
        ),
        ({"name": "hub:"}, r"expected hub:<owner/name> or hub:<folder>"),
        ({"name": "hub:/no/such"}, r"there is no folder /no/such"),
        ({"name": "image_folder"}, r"needs data\.path"),
        ({"name": "image_folder", "path": "/no/such"}, r"data\.path=/no/such: there is no such folder"),
        ({"name": "fashion_mnist", "options": {"hub": "yes"}}, r"data\.options\.hub must be true or false"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(Refusal, match=message):
        data.check(DataConfig(**settings))  # type: ignore[arg-type]

"""What CreamFL refuses before the first round: options, models, sets."""

from __future__ import annotations

import math

import pytest

from tests.strategies.creamfl.pairs import PAIRS, go
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.strategies.creamfl.method import Config, CreamFL


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("data.public=0", "data.text_encoder=minilm"), "data.public"),
        (("data.text_encoder=",), "data.text_encoder"),
        (("strategy.num_both=1",), "should make data.num_clients=6"),
        (("data.augment=flip",), "data.augment"),
        (("strategy.wire=float8",), "strategy.wire"),
        (("strategy.ensemble=median",), "strategy.ensemble"),
        (("strategy.text_models=[grue]",), "strategy.text_models"),
        (("strategy.image_models=[cn]",), "cnn"),
        (("strategy.image_sizes={cvt_13: {}}",), "strategy.image_sizes.cvt_13"),
        (("strategy.temperature=0",), "strategy.temperature"),
        (("strategy.image_models=[]",), "strategy.image_models"),
        (("strategy.image_sizes={cnn: {widht: 2}}",), r"strategy\.image_sizes\.cnn\.widht"),
        (("strategy.text_sizes={gru: {wdth: 2}}",), r"strategy\.text_sizes\.gru\.wdth"),
        (("strategy.text_sizes={gru: 3}",), r"strategy\.text_sizes\.gru should be a mapping"),
        (("strategy.text_sizes={gru: []}",), r"strategy\.text_sizes\.gru should have at least one entry"),
        (("strategy.image_sizes={cnn: [{}, {widht: 2}]}",), r"strategy\.image_sizes\.cnn\[1\]\.widht"),
        (("strategy.server_text_sizes={wdth: 2}",), r"strategy\.server_text_sizes\.wdth"),
        (("strategy.noise_clients=[6]",), r"noise_clients names \[6\]"),
        (("strategy.server_weight_decay=-1",), "server_weight_decay"),
        (("strategy.distil=.inf",), "distil"),
        (("strategy.public_per_round=1", "strategy.exclude_self=true"), "exclude_self"),
        (("model.norm=local",), r"model\.norm=local"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_starts(options, message):
    with pytest.raises(ExperimentError, match=message):
        load("digits", [*PAIRS, *options])


def test_a_set_without_texts_is_refused(tmp_path):
    with pytest.raises((ExperimentError, ValueError), match="texts"):
        go(tmp_path, "data.name=digits", "data.options={}")


def test_models_that_cannot_read_the_public_set_are_refused_before_the_first_round(tmp_path):
    with pytest.raises(ValueError, match="image"):
        go(tmp_path, "strategy.image_models=[cvt_tiny32]", "strategy.image_sizes={}", "data.encoder=pixels")
    assert not (tmp_path / "run" / "summary.json").exists()


@pytest.mark.parametrize("value", [math.inf, math.nan, 0.0])
@pytest.mark.parametrize(
    "key", ["class_sharpness", "ensemble_temperature", "temperature", "pair_temperature", "server_lr", "dimension"]
)
def test_values_that_cannot_be_are_refused_by_name(key, value):
    with pytest.raises(ValueError, match=rf"strategy\.{key}\b"):
        CreamFL(Config(**{key: value}))

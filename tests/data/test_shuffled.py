"""Clients whose training labels are shuffled: which, what stays, and that all engines see the same."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from umbel.conf.errors import ExperimentError
from umbel.conf.federation import federation
from umbel.conf.load import load
from umbel.core.refusal import Refusal
from umbel.data.errors import DataError
from umbel.data.federation import Federation

SIX = ("data.num_clients=6", "data.partition=iid", "data.client_validation=0.2")


def federations(number: int, seed: int = 0) -> tuple[Federation, Federation]:
    made = [load("digits", [*SIX, f"run.seed={seed}", f"data.num_shuffled={n}"]) for n in (0, number)]
    return federation(made[0]), federation(made[1])


def test_labels_of_so_many_clients_change_place_and_nothing_else():
    honest, shuffled = federations(2)
    assert len(shuffled.shuffled_clients) == 2 and not honest.shuffled_clients
    for client in range(6):
        before, after = honest.client(client), shuffled.client(client)
        for part in ("train", "validation", "test"):
            assert torch.equal(getattr(before, part).images, getattr(after, part).images)
        assert torch.equal(before.validation.labels, after.validation.labels)
        assert torch.equal(before.test.labels, after.test.labels)
        same = (before.train.labels == after.train.labels).double().mean()
        if client in shuffled.shuffled_clients:
            assert same < 0.3  # a tenth by chance
            assert torch.equal(before.train.labels.sort().values, after.train.labels.sort().values)
        else:
            assert same == 1
    assert torch.equal(honest.server.test.labels, shuffled.server.test.labels)


def test_it_is_the_seeds_and_travels_with_the_arrays():
    shuffled = federations(1)[1]
    again = Federation.from_arrays({k: np.array(v) for k, v in shuffled.arrays().items()}, dict(shuffled.meta))
    assert again.shuffled_clients == shuffled.shuffled_clients
    (client,) = shuffled.shuffled_clients
    assert torch.equal(again.client(client).train.labels, shuffled.client(client).train.labels)
    assert len({federations(1, seed)[1].shuffled_clients for seed in range(8)}) > 2


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["data.num_shuffled=11"], r"data\.num_shuffled=11 is more than data\.num_clients=10"),
        (["data.num_shuffled=-1"], r"data\.num_shuffled should be at least 0"),
        (["data.num_shuffled=1", "data.partition=split_tasks"], r"data\.num_shuffled=1 mixes the labels of tasks"),
    ],
)
def test_what_cannot_be(overrides, message):
    with pytest.raises(ExperimentError, match=message):
        load("digits", overrides)


def test_more_than_there_are_from_python():
    config = load("digits", SIX).data
    with pytest.raises(DataError, match=r"data\.num_shuffled must be from 0 to data\.num_clients=6, found 7"):
        Federation.build(replace(config, num_shuffled=7), 0)
    with pytest.raises(Refusal, match=r"data\.num_shuffled should be at least 0, found -1"):
        Federation.build(replace(config, num_shuffled=-1), 0)

"""What keeps GGEUR's draws and statistics honest: clipping, withholding, seeds of their own, evaluation mode."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from tests.strategies.ggeur.test_ggeur_wiring import C, D, client_of, remembered
from umbel import models
from umbel.core.folds import Folded
from umbel.core.records import Payload
from umbel.core.rng import generator
from umbel.data.types import Examples
from umbel.models.weights import shared_state
from umbel.strategies import fedavg
from umbel.strategies.ggeur import method as ggeur
from umbel.strategies.ggeur.completion import completion
from umbel.strategies.ggeur.method import GGEUR, Config
from umbel.strategies.ggeur.pooling import class_statistics, sums_tree
from umbel.strategies.ggeur.releases import features_of
from umbel.strategies.ggeur.remembered import complete
from umbel.strategies.ggeur.shapes import Geometry

ASKED = Payload({"guide": {}}, {"classes": 3.0, "features": float(D), "clients": 1.0})


# ---- statistics -------------------------------------------------------------------------------------------------


def test_prototypes_are_withheld_and_clipped_like_the_rest():
    client = client_of(1)
    reply = GGEUR(Config(domains=True, min_count=4, clip=0.5)).describe(ASKED, client)
    assert list(reply.trees["prototypes"]) == ["0/1"]  # of three and five examples
    images = client.train_data.images[3:]
    short = images * (0.5 / torch.linalg.norm(images, dim=1, keepdim=True)).clamp(max=1)
    torch.testing.assert_close(reply.trees["prototypes"]["0/1"][1:], short.sum(0))


def test_a_prototype_is_a_mean():
    strategy = GGEUR(Config(release="sums", domains=True))
    sums = sums_tree(class_statistics(torch.randn(9, D, generator=generator(0)), torch.zeros(9).long(), C), 1)
    before = ggeur.State(fedavg.State({"head.weight": torch.zeros(C, D)}), {}, {}, (), {}, 0)
    packed = torch.cat([torch.tensor([4.0]), torch.full((D,), 10.0)])
    folded = Folded({"statistics": sums, "prototypes": {"1/0": packed}}, {}, 4, 4)
    state = strategy.after_statistics(before, folded, SimpleNamespace(num_clients=4))
    assert state.prototypes["1/0"].tolist() == [2.5] * D


def test_features_of_a_model_under_training_are_of_evaluation_mode():
    torch.manual_seed(0)
    model = models.build("cnn", 3, 8, 1, width=2, hidden=6, norm="batch").train()
    images = torch.randn(8, 1, 8, 8, generator=generator(1))
    data = Examples(images, client_of(1).train_data.labels)
    client = replace(client_of(1).with_data(data), load_model=lambda tree: model)
    features, _ = features_of(Config(refresh=1), Payload({"model": {}}), client)
    torch.testing.assert_close(features, model.eval().features(images).detach())


# ---- draws ------------------------------------------------------------------------------------------------------


def test_classes_have_draws_of_their_own():
    strategy, client = GGEUR(Config(target=12, complete="all")), client_of(1)
    client = client.with_data(Examples(client.train_data.images[:0], client.train_data.labels[:0]))
    drawn = complete(strategy.config, client, remembered((30, 30, 30))).images.split(12)
    # All around the same mean, in the same shape.
    assert not torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[1], drawn[2])


def test_draws_are_kept_without_replacement():
    still, own = Geometry(torch.zeros(1, 2), torch.eye(2)[None], torch.zeros(1, 2), torch.ones(1)), torch.eye(2)
    for seed in range(5):  # 8 of 8 candidates, 4 around each
        drawn = completion(still, 0, own, 10, generator(seed), draws=4)
        assert drawn.sum(0).tolist() == [4, 4]


def trained_on(strategy, client) -> int:
    """On how many examples a client trains a linear model."""
    model = models.build("linear", 3, 1, D)
    payload = Payload({"model": shared_state(model)})
    return strategy.phase("train").local(payload, replace(client, load_model=lambda tree: model)).num_examples


def test_a_client_without_the_geometry_trains_on_what_it_has():
    strategy, client = GGEUR(Config(target=12, complete="all")), client_of(1)
    assert trained_on(strategy, client) == 8
    assert trained_on(strategy, replace(client, memory=remembered((30, 30, 30)))) == 3 * 12


def test_completion_under_training_is_made_anew_each_round():
    def keep(name, version, make):
        pytest.fail("what is kept of the features would be that of an earlier model")

    client = replace(client_of(1), memory=remembered((30, 30, 30)), keep=keep)
    assert trained_on(GGEUR(Config(target=12, refresh=5)), client) == 8  # completed are the head's features alone

"""FedProto: distances and prototypes by hand, what is without them, and what travels."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.contexts import client_context
from tests.helpers import bits, small_run, unequal
from umbel.core.fold_tree import FoldTree
from umbel.core.records import BadReplyError, Payload, Reply
from umbel.core.rng import build_seeded, generator
from umbel.core.training import LocalConfig, num_processed
from umbel.data.types import Examples
from umbel.models import build
from umbel.models.base import Model
from umbel.strategies.fedproto import Config, FedProto, State, class_sums, distance, nearness

IMAGES = torch.rand(6, 1, 3, 3, generator=generator(1), dtype=torch.float64)
LABELS = torch.tensor([0, 1, 3, 0, 2, 3])
EVERYWHERE = ("evaluate.clients=-1", "data.client_test=0.3")


def model_of(seed: int) -> Model:
    return build_seeded(lambda: build("mlp", 4, 3, 1, hidden=5, depth=1), seed, torch.float64)


def known(*present: float, width: int = 5) -> dict[str, Tensor]:
    """Prototypes of four classes, of which some are there."""
    mean = torch.rand(4, width, generator=generator(2), dtype=torch.float64)
    flags = torch.tensor(present, dtype=torch.float64)
    return {"mean": mean * flags[:, None], "present": flags}


def one_round(
    config: Config,
    prototypes: dict[str, Tensor],
    rows: slice = slice(0, 6),
    model: Model | None = None,
    lr: float = 0.5,
) -> Reply:
    """One client's round: two steps on all that it has, from the model that it holds."""
    model = model_of(0) if model is None else model
    local = LocalConfig(epochs=2, batch_size=0, lr=lr, device="cpu", precision="fp64")
    data = Examples(IMAGES[rows], LABELS[rows])
    client = client_context(data, 4, local=local, load_model=lambda tree: model)
    return FedProto(config).local(Payload({"prototypes": prototypes}), client)


def test_both_distances_by_hand():
    z = torch.tensor([[3.0, 4.0], [1.0, 0.0], [5.0, 5.0]]).double()
    mean, present = torch.tensor([[0.0, 0.0], [5.0, 1.0], [9.0, 9.0]]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    labels = torch.tensor([0, 0, 1])
    # (9 + 16 + 1 + 0 + 0 + 16) / 6; means (2, 2) and (5, 5): sqrt 8 + 4.
    assert distance(z, labels, mean, present, "examples").item() == pytest.approx(7, rel=1e-12)
    assert distance(z, labels, mean, present, "prototypes").item() == pytest.approx(math.sqrt(8) + 4, rel=1e-12)
    # Of class 2 there is no prototype: its example is at no distance, but is one of three.
    labels = torch.tensor([0, 0, 2])
    assert distance(z, labels, mean, present, "examples").item() == pytest.approx(26 / 6, rel=1e-12)
    assert distance(z, labels, mean, present, "prototypes").item() == pytest.approx(math.sqrt(8), rel=1e-12)


def test_the_nearest_prototype_of_those_that_there_are():
    mean, present = torch.tensor([[0.0, 0.0], [3.0, 4.0], [1.0, 0.0]]).double(), torch.tensor([1.0, 1.0, 0.0]).double()
    logits = nearness(torch.tensor([[0.0, 0.0], [3.0, 3.0]]).double(), mean, present)
    assert logits.argmax(1).tolist() == [0, 1] and logits[:, :2].tolist() == [[0, -5], [-math.sqrt(18), -1]]
    assert (logits[:, 2] < logits[:, :2].min(1).values).all() and logits.isfinite().all()


@pytest.mark.parametrize("form", ["examples", "prototypes"])
def test_what_a_client_trains_and_what_it_sends(form):
    prototypes, ours, expected = known(1, 1, 0, 1), model_of(0), model_of(0)
    reply = one_round(Config(strength=0.7, distance=form), prototypes, model=ours)
    losses = []
    for _ in range(2):
        z = expected.features(IMAGES)
        far = distance(z, LABELS, prototypes["mean"], prototypes["present"], form)
        loss = F.cross_entropy(expected.head(z), LABELS) + 0.7 * far
        losses.append(loss.item())
        parameters = list(expected.parameters())
        for parameter, gradient in zip(parameters, torch.autograd.grad(loss, parameters), strict=True):
            parameter.data -= 0.5 * gradient
    for found, weight in zip(ours.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(found, weight, rtol=0, atol=1e-12)
    assert reply.numbers["loss"] == pytest.approx(sum(losses) / 2, rel=1e-12)
    features = expected.features(IMAGES).detach()
    sent = reply.trees["prototypes"]
    assert sent["present"].tolist() == [2, 1, 1, 2]
    for label in range(4):
        torch.testing.assert_close(sent["mean"][label], features[label == LABELS].sum(0), rtol=0, atol=1e-12)


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_the_global_prototypes_are_means_over_those_who_have_the_class(weighting):
    strategy, state = FedProto(Config(weighting=weighting)), State(known(1, 0, 1, 0))
    parts, tree = (slice(0, 2), slice(2, 4), slice(5, 6)), FoldTree(FedProto(Config()).fold(), 3)
    payload = strategy.send(state, unequal().server())
    for client, rows in enumerate(parts):  # with models as they began: the same for all
        reply = one_round(Config(weighting=weighting), state.prototypes, rows, lr=0.0)
        strategy.fold().check(reply, payload)
        tree.add_reply(client, client, reply)
    after = strategy.update(state, strategy.fold().finish(tree.root()), unequal().server()).prototypes
    features = model_of(0).features(IMAGES).detach()
    # Class 0: clients 0 and 1 have one example each; 1: client 0; 3: clients 1 and 2; 2 is with nobody, and stays.
    expected = {0: (0, 3), 1: (1,), 3: (2, 5)}
    for label, rows in expected.items():
        torch.testing.assert_close(after["mean"][label], features[list(rows)].mean(0), rtol=0, atol=1e-12)
    assert torch.equal(after["mean"][2], state.prototypes["mean"][2]) and after["present"].tolist() == [1, 1, 1, 1]


def test_weights_of_clients():
    # Two examples of class 0 at (1, 1) and one at (4, 4): 2 by examples, 2.5 uniformly.
    for weighting, counts, sums, expected in (("examples", 2, 2.0, 2.0), ("uniform", 1, 1.0, 2.5)):
        strategy, tree = FedProto(Config(weighting=weighting)), FoldTree(FedProto(Config()).fold(), 2)
        for client, (count, total) in enumerate(((counts, sums), (1, 4.0))):
            own = {"mean": torch.full((1, 2), total).double(), "present": torch.tensor([count]).double()}
            tree.add_reply(client, client, Reply({"prototypes": own}, {"loss": 0.0}, 3))
        empty = {"mean": torch.zeros(1, 2).double(), "present": torch.zeros(1).double()}
        after = strategy.update(State(empty), strategy.fold().finish(tree.root()), unequal().server())
        assert after.prototypes["mean"].tolist() == [[expected, expected]]


def test_sums_are_exact_and_of_each_class():
    counts, sums = class_sums(torch.tensor([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), torch.tensor([2, 0, 2]), 4)
    assert counts.tolist() == [1, 0, 2, 0] and sums.tolist() == [[3, 4], [0, 0], [6, 8], [0, 0]]
    assert counts.dtype == sums.dtype == torch.float64


@pytest.mark.parametrize(
    ("weighting", "present", "flaw"),
    [
        ("examples", [5.0, 0.0, 1.0, 0.0], None),
        ("examples", [5.0, 0.0, 1.5, 0.0], "comes to 6.5 examples, at most 6"),
        ("examples", [5.0, -1.0, 1.0, 0.0], "from 0 to inf"),
        ("uniform", [1.0, 1.0, 0.0, 1.0], None),
        ("uniform", [1.0, 2.0, 0.0, 1.0], "from 0 to 1"),
        ("uniform", [1.0, -1.0, 0.0, 1.0], "from 0 to 1"),
    ],
)
def test_a_client_counts_no_more_than_it_has(weighting, present, flaw):
    """A liar's reply, and a node's partial sum of two of which one is a liar's: 6 examples at most, or 7 of both."""
    strategy = FedProto(Config(weighting=weighting))
    payload, fold = Payload({"prototypes": known(1, 1, 1, 1)}), strategy.fold()

    def reply(of: list[float], num_examples: int) -> Reply:
        flags = torch.tensor(of, dtype=torch.float64)
        return Reply({"prototypes": {"mean": torch.ones(4, 5).double(), "present": flags}}, {"loss": 0.0}, num_examples)

    partial = fold.add(fold.lift(0, reply([1.0, 0.0, 0.0, 0.0], 1)), 1, reply(present, 6))
    most = {0: 1, 1: 6}
    if flaw is None:
        fold.check(reply(present, 6), payload, 6)
        fold.check_partial(partial, payload, (0, 1), most.__getitem__)
        return
    with pytest.raises(BadReplyError, match=flaw):
        fold.check(reply(present, 6), payload, 6)
    partial.trees["prototypes"]["present"] += 2.0 * torch.tensor(present).sign()  # beyond what both may have
    with pytest.raises(BadReplyError, match="'present'"):
        fold.check_partial(partial, payload, (0, 1), most.__getitem__)


def test_without_strength_clients_are_as_good_as_alone(tmp_path):
    """To the last digit: both pass over the same batches with the same noise."""
    options = (*EVERYWHERE, "model.name=mlp", "model.sizes={hidden: 8, dropout: 0.5}")
    home = small_run(tmp_path / "home", "strategy={name: umbel.strategies.local:Local}", *options)
    without = small_run(tmp_path / "without", "strategy.name=fedproto", "strategy.strength=0", *options)
    drawn = small_run(tmp_path / "drawn", "strategy.name=fedproto", "strategy.strength=5", *options)
    losses = [run.summary["metrics"]["clients/test/loss_mean"] for run in (home, without, drawn)]
    assert losses[0] == losses[1] != losses[2]
    assert bits(without) != bits(drawn)  # their prototypes


def test_prototypes_travel_and_no_weights(tmp_path):
    result = small_run(tmp_path, "strategy.name=fedproto", *EVERYWHERE)
    # Two rounds of four clients: 10 x 16 features and 10 flags of 4 bytes, down for training and evaluation, up once.
    prototypes = 4 * (10 * 16 + 10)
    assert result.summary["bytes_down"]["tensors"] == 2 * 4 * 2 * prototypes
    assert result.summary["num_parameters"] == 0 and result.summary["num_failures"] == 0
    rows = result.metrics.query("side == 'clients' and split == 'test'")["metric"]
    assert {"accuracy_mean", "prototype/accuracy_mean"} <= set(rows)


def test_virtual_time_counts_the_pass_for_prototypes():
    (phase,) = FedProto(Config()).every_phase()
    local = LocalConfig(epochs=4, batch_size=8)
    assert phase.num_processed(local, 20) == num_processed(local, 20) + 20 == 100

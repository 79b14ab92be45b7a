"""FedET: weights, consensus and loss by hand, a round by hand, what travels, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tests.helpers import small_run
from tests.strategies.a_party import CLASSES, F64, LOCAL, PUBLIC, SIDE, client_of, server_of
from umbel import models
from umbel.core.fold_tree import FoldTree
from umbel.core.records import BadReplyError, Reply
from umbel.core.refusal import Refusal
from umbel.core.rng import generator
from umbel.models.base import Model
from umbel.strategies.fedet import (
    Config,
    FedET,
    Represented,
    State,
    consensus,
    mean_of,
    numbered,
    objective,
    part,
    weights_of,
)
from umbel.strategies.fedgems import divergence
from umbel.strategies.parties import scores_of

TWO = Config(models=["linear", "mlp"], sizes={"mlp": {"hidden": 3, "depth": 1}}, width=4, server_epochs=1)
# Two examples: of the first the variances are 2 and 6, which agree; of the second 6 and 2, which do not.
SCORES = torch.tensor([[[3.0, 0, 0], [3 * 3**0.5, 0, 0]], [[3 * 3**0.5, 0, 0], [0, 3.0, 0]]])


def test_weights_are_shares_of_the_variance():
    torch.testing.assert_close(weights_of(SCORES), torch.tensor([[0.25, 0.75], [0.75, 0.25]], dtype=F64))
    only = torch.tensor([[True, False], [False, False]])
    assert weights_of(SCORES, only).tolist() == [[1.0, 0.0], [0.0, 0.0]]


def test_the_consensus_and_who_disagrees_by_hand():
    agreed, diverse, other = consensus(SCORES)
    root = 3 * 3**0.5
    torch.testing.assert_close(agreed, torch.tensor([[0.75 + 0.75 * root, 0, 0], [0.75 * root, 0.75, 0]]))
    assert other.tolist() == [[False, False], [False, True]]
    assert diverse.tolist() == [[0, 0, 0], [0, 3, 0]]


def test_those_who_disagree_weigh_among_themselves():
    """Three of variances 18, 8 and 2: the first decides, the others' shares are 4/5 and 1/5."""
    scores = torch.tensor([[[9.0, 0, 0]], [[0, 6.0, 0]], [[0, 0, 3.0]]])
    _, diverse, other = consensus(scores)
    assert other.flatten().tolist() == [False, True, True]
    torch.testing.assert_close(diverse, torch.tensor([[0.0, 4.8, 0.6]]))


@pytest.mark.parametrize("scores", [torch.randn(1, 4, 3, generator=generator(0)), torch.zeros(1, 4, 3)])
def test_equal_clients_say_together_what_each_says(scores):
    """So do those whose classes are in another order: their variance is the same, and the consensus is the mean."""
    agreed, diverse, other = consensus(scores.repeat(5, 1, 1))
    torch.testing.assert_close(agreed, scores[0])
    assert not other.any() and not diverse.any()
    turned = torch.cat([scores, scores.roll(1, -1)])
    torch.testing.assert_close(consensus(turned)[0], turned.mean(0))


def test_the_loss_by_hand():
    model = models.build("linear", CLASSES, SIDE, 1).double()
    source = generator(5)
    agreed, diverse = (torch.randn(5, 3, generator=source, dtype=F64) for _ in range(2))
    disputed, index = torch.tensor([True, False, True, False, False]), torch.tensor([2, 1, 0])
    scores = model(PUBLIC.images[index])
    apart = divergence(diverse[[2, 0]], scores[[0, 2]]).sum() / 3
    expected = F.cross_entropy(scores, agreed.argmax(1)[index]) + 0.4 * apart
    torch.testing.assert_close(objective(agreed, diverse, disputed, 0.4)(model, PUBLIC.images[index], index), expected)
    alone = objective(agreed, diverse, disputed & False, 0.4)(model, PUBLIC.images[index], index)
    torch.testing.assert_close(alone, F.cross_entropy(scores, agreed.argmax(1)[index]))


def test_the_mean_is_weighted_and_keeps_its_dtype():
    trees = [{"w": torch.tensor([1.0, 2.0])}, {"w": torch.tensor([5.0, 2.0])}]
    assert mean_of(trees, [1, 3])["w"].tolist() == [4.0, 2.0]
    assert mean_of(trees, [1, 1])["w"].dtype == torch.float32


def test_the_shared_layer_is_the_last_but_one():
    model = Represented(models.build("linear", CLASSES, SIDE, 1), 4, CLASSES).double()
    x, state = PUBLIC.images, model.state_dict()
    inner = (model.trunk.features(x) @ state["enter.weight"].T + state["enter.bias"]).relu()
    outer = (inner @ state["represent.weight"].T + state["represent.bias"]).relu()
    torch.testing.assert_close(model(x), outer @ state["head.weight"].T + state["head.bias"])
    assert state["represent.weight"].shape == (4, 4) and not any(name.startswith("trunk.head") for name in state)


def replied(strategy: FedET, state: State, *clients: int) -> tuple[list[dict[str, torch.Tensor]], object]:
    """Replies of clients with 1, 2, ... examples, and what they fold to."""
    payload, fold = strategy.send(state, server_of()), strategy.fold()
    folded, sent = FoldTree(fold, len(clients)), []
    for place, k in enumerate(clients):
        reply = replace(strategy.local(payload, client_of(k)), num_examples=place + 1)
        fold.check(reply, payload)
        folded.add_reply(place, k, reply)
        sent.append(part(reply.trees["small"], k % 2))
    return sent, fold.finish(folded.root())


@pytest.mark.parametrize("weighting", ["examples", "uniform"])
def test_a_round_by_hand(weighting):
    """Clients 0 and 2 have the linear model, nobody the other; at a rate of 0 the large model takes their layer."""
    strategy = FedET(replace(TWO, weighting=weighting))
    server = replace(server_of(), local=replace(LOCAL, lr=0.0))
    state = strategy.initial(server)
    sent, folded = replied(strategy, state, 0, 2)
    after = strategy.update(state, folded, server)
    mean = mean_of(sent, [1, 2] if weighting == "examples" else [1, 1])
    assert not torch.equal(sent[0]["head.weight"], part(state.small, 0)["head.weight"])
    for name, tensor in part(after.small, 0).items():
        torch.testing.assert_close(tensor, mean[name])
    torch.testing.assert_close(after.model["represent.weight"], mean["represent.weight"])
    assert torch.equal(after.model["head.weight"], state.model["head.weight"])
    idle, before = part(after.small, 1), part(state.small, 1)
    for name, tensor in idle.items():
        assert torch.equal(tensor, (after.model if name.startswith("represent.") else before)[name]), name


def test_the_large_model_learns_the_consensus_by_hand():
    """A full-batch step of lr .25 from the clients' mean layer; then all small models have its layer."""
    strategy, server = FedET(replace(TWO, diversity=0.5)), server_of()
    state = strategy.initial(server)
    sent, folded = replied(strategy, state, 0, 1, 2)
    said = []
    for turn, tree in zip((0, 1, 0), sent, strict=True):
        model = strategy.small(turn, server, CLASSES)
        model.load_state_dict(tree)
        said.append(scores_of(model, PUBLIC.images))
    agreed, diverse, other = consensus(torch.stack(said))
    large = strategy.large(server, state.model)
    large.load_state_dict(mean_of(sent_layers(sent), [1, 2, 3]), strict=False)
    objective(agreed, diverse, other.any(0), 0.5)(large, PUBLIC.images, torch.arange(5)).backward()
    after = strategy.update(state, folded, server)
    for name, parameter in large.named_parameters():
        torch.testing.assert_close(after.model[name], parameter.detach() - 0.25 * parameter.grad)
    for turn in (0, 1):
        assert torch.equal(part(after.small, turn)["represent.weight"], after.model["represent.weight"])
    assert after.numbers["disagreement"] == pytest.approx(other.double().mean().item())
    # Labels of public examples are not looked at.
    other_labels = replace(server, public=replace(PUBLIC, labels=PUBLIC.labels.flip(0)))
    again = strategy.update(state, folded, other_labels)
    assert all(torch.equal(again.model[name], tensor) for name, tensor in after.model.items())


def sent_layers(trees: list[dict[str, torch.Tensor]]) -> list[dict[str, torch.Tensor]]:
    return [{name: t for name, t in tree.items() if name.startswith("represent.")} for tree in trees]


def test_a_client_may_send_another_small_model_than_is_its_turn():
    """Client 0, whose turn the linear model is, sends the other: that one learns from it, and the round goes on."""
    strategy, server = FedET(TWO), replace(server_of(), local=replace(LOCAL, lr=0.0))
    state = strategy.initial(server)
    payload, fold = strategy.send(state, server), strategy.fold()
    reply = strategy.local(payload, client_of(1))
    fold.check(reply, payload)
    folded = FoldTree(fold, 1)
    folded.add_reply(0, 0, reply)
    after = strategy.update(state, fold.finish(folded.root()), server)
    sent, idle, taught = part(reply.trees["small"], 1), part(state.small, 0), part(after.small, 1)
    assert not torch.equal(sent["head.weight"], part(state.small, 1)["head.weight"])
    assert all(torch.equal(taught[name], tensor) for name, tensor in sent.items())
    assert torch.equal(part(after.small, 0)["head.weight"], idle["head.weight"])


def test_a_run_goes_on_where_a_client_sends_another_small_model(tmp_path, monkeypatch):
    honest = FedET.local

    def other(strategy, payload, client):
        return honest(strategy, payload, replace(client, id=1) if client.id == 0 else client)

    monkeypatch.setattr(FedET, "local", other)
    asked = ("strategy.name=fedet", "data.public=0.2", "strategy.models=[linear, mlp]", "strategy.width=4")
    run = small_run(tmp_path, *asked, "run.rounds=1")
    assert run.summary["num_failures"] == 0 and run.summary["rounds"] == 1


def test_clients_need_no_public_examples():
    strategy, server = FedET(TWO), server_of()
    payload = strategy.send(strategy.initial(server), server)
    with_them, without = client_of(1), client_of(1, public=None)
    replies = [strategy.local(payload, client).trees["small"] for client in (with_them, without)]
    assert all(torch.equal(replies[1][name], tensor) for name, tensor in replies[0].items())
    said = strategy.personal(strategy.evaluated(strategy.initial(server), server), without)["model"]
    assert said.predict(PUBLIC.images).shape == (5, CLASSES)


def test_a_reply_is_one_whole_small_model():
    strategy = FedET(TWO)
    state = strategy.initial(server_of())
    payload = strategy.send(state, server_of())
    own = strategy.local(payload, client_of()).trees["small"]
    fold = strategy.fold()
    fold.check(Reply({"small": own}, {"loss": 0.0}, 4), payload)
    fold.check(Reply({"small": numbered(part(state.small, 1), 1)}, {"loss": 0.0}, 4), payload)  # of any client
    first = next(iter(own))
    wrong = [
        {},
        dict(list(own.items())[1:]),
        {**own, "1/head.bias": torch.zeros(CLASSES, dtype=F64)},
        {**own, first: torch.zeros(2, dtype=F64)},
        {**own, first: own[first].float()},
        {name.replace("0/", "7/"): tensor for name, tensor in own.items()},
    ]
    for tree in wrong:
        with pytest.raises(BadReplyError, match="small"):
            fold.check(Reply({"small": tree}, {"loss": 0.0}, 4), payload)
    with pytest.raises(BadReplyError):
        fold.check(Reply({"small": {**own, first: own[first] * torch.inf}}, {"loss": 0.0}, 4), payload)


def test_clients_evaluate_their_own_small_model_and_the_server_the_large_one():
    strategy, server = FedET(TWO), server_of()
    state = strategy.initial(server)
    small, large = (
        strategy.personal(strategy.evaluated(state, server), client_of(1))["model"].predict(PUBLIC.images),
        strategy.predictors(state, server)["model"].predict(PUBLIC.images),
    )
    model: Model = strategy.small(1, server, CLASSES)
    torch.testing.assert_close(small, model.eval()(PUBLIC.images))
    torch.testing.assert_close(large, strategy.large(server).eval()(PUBLIC.images))


def test_small_models_of_several_kinds_teach_a_larger_one(tmp_path):
    asked = (
        *("strategy.name=fedet", "data.public=0.2", "model.name=cnn", "model.sizes={width: 8, hidden: 32}"),
        *("strategy.sizes={cnn: {width: 4, hidden: 16}, mlp: {hidden: 12, depth: 1}}", "strategy.width=16"),
    )
    run = small_run(tmp_path, *asked, "run.rounds=2")
    assert run.summary["num_failures"] == 0
    built = [Represented(models.build("cnn", 10, 8, 1, width=4, hidden=16), 16, 10)]
    built.append(Represented(models.build("mlp", 10, 8, 1, hidden=12, depth=1), 16, 10))
    sizes = [sum(4 * p.numel() for p in model.parameters()) for model in built]
    assert run.summary["bytes_up"]["tensors"] == 2 * 2 * sum(sizes)
    assert run.summary["bytes_down"]["tensors"] == 2 * 4 * sum(sizes)
    assert not list((run.path / "memory").rglob("*.safetensors"))
    rows = pd.read_parquet(run.path / "metrics.parquet")
    assert rows[rows.metric == "disagreement"].value.between(0, 1).all() and (rows.metric == "disagreement").sum() == 2
    spent, passes = run.summary["spent"], run.summary["passes"]
    assert sum(each["backward"] for each in passes["clients"].values()) == spent["clients"]["examples"]
    assert sum(each["backward"] for each in passes["server"].values()) == spent["server"]["examples"]


def test_what_cannot_be_is_refused():
    with pytest.raises(Refusal, match="no party has such a model"):
        FedET(Config(models=["cnn"], sizes={"mlp": {}}))
    with pytest.raises(Refusal, match="needs public examples"):
        FedET(TWO).initial(replace(server_of(), public=None))

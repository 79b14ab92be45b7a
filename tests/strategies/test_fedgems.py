"""FedGEMS: what the server selects and how clients' words are fused by hand, its step, its pool, and what travels."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import torch
import torch.nn.functional as F

from tests.helpers import bits, small_run
from tests.strategies.a_party import CLASSES, F64, PUBLIC, client_of, linear, server_of
from umbel.core.fold_tree import FoldTree
from umbel.core.folds import Folded
from umbel.core.memory import MemoryRecord
from umbel.core.records import BadReplyError, Reply
from umbel.core.refusal import Refusal
from umbel.core.rng import generator
from umbel.strategies.fedgems import Config, FedGEMS, State, distilling, divergence, entropy, fuse, select, weights_of
from umbel.strategies.parties import scores_of

LINEAR = Config(models=["linear"], server_epochs=1)
# What the server says: right about examples 0 and 3, wrong about 1, 2 and 4; of 1 it knew before.
SAYS = torch.tensor([[2.0, 0, 0], [1, 0, 0], [1, 0, 0], [3, 1, 0], [0, 0, 1]])
KNOWN = torch.tensor([False, True, False, False, False])


def state_of(strategy: FedGEMS, says: torch.Tensor = SAYS, known: torch.Tensor = KNOWN) -> State:
    pool = torch.arange(5.0)[:, None] * torch.eye(3)[1] * known[:, None]
    knowledge = {"says": says, "pool": pool, "known": known.to(torch.uint8)}
    return replace(strategy.initial(server_of()), knowledge=knowledge)


def test_what_is_selected_by_hand():
    right, remembered, asked = select(SAYS, PUBLIC.labels, KNOWN)
    assert right.nonzero().flatten().tolist() == [0, 3]
    assert remembered.nonzero().flatten().tolist() == [1]
    assert asked.nonzero().flatten().tolist() == [2, 4]


def test_weights_by_hand():
    """Two right clients with entropies H of their own weigh as exp(1 / H), a third that is wrong nothing."""
    sure, unsure, wrong = [0.0, 4.0, 0.0], [0.0, 1.0, 0.0], [9.0, 0.0, 0.0]
    scores = torch.tensor([[sure], [unsure], [wrong]])
    h = [-sum(p * math.log(p) for p in torch.tensor(each, dtype=F64).softmax(0).tolist()) for each in (sure, unsure)]
    assert entropy(torch.tensor([sure, unsure])).tolist() == pytest.approx(h, rel=1e-12)
    by = [math.exp(1 / each - 1 / h[0]) for each in h]
    assert weights_of(scores, torch.tensor([1])).flatten().tolist() == pytest.approx(
        [by[0] / sum(by), by[1] / sum(by), 0.0], rel=1e-12
    )
    assert weights_of(scores, torch.tensor([1]), "mean").flatten().tolist() == [0.5, 0.5, 0.0]


def test_equal_clients_are_fused_to_their_mean_and_one_to_itself():
    source, labels = generator(0), torch.tensor([0, 1])
    one = torch.tensor([[3.0, 1, 0], [0.5, 2, 1]])
    turned = one[:, [0, 2, 1]]  # of the same entropy, by another order of two classes
    turned[1] = one[1, [2, 1, 0]]
    fused, anybody = fuse(torch.stack([one, turned]), labels)
    torch.testing.assert_close(fused, (one + turned) / 2)
    assert anybody.tolist() == [True, True]
    wrong = torch.randn(2, 3, generator=source)
    wrong[[0, 1], labels] = -9.0
    fused, anybody = fuse(torch.stack([wrong, one]), labels)
    torch.testing.assert_close(fused, one)
    fused, anybody = fuse(torch.stack([wrong, 2 * wrong]), labels)
    assert not anybody.any() and not fused.any()


def test_clients_without_a_doubt_weigh_the_same():
    scores = torch.tensor([[[1e4, 0, 0]], [[2e4, 0, 0]], [[1.0, 0, 0]]])
    assert weights_of(scores, torch.tensor([0])).flatten().tolist() == [0.5, 0.5, 0.0]


@pytest.mark.parametrize("epsilon", [0.0, 0.3, 1.0])
def test_the_loss_by_hand(epsilon):
    model, targets = linear(), torch.randn(5, 3, generator=generator(4), dtype=F64)
    index, taught = torch.tensor([4, 1]), torch.tensor([False, True, False, False, False])
    scores = model(PUBLIC.images[index])
    p = targets[1].softmax(0)
    apart = (p * (p.log() - scores[1].log_softmax(0))).sum()
    alone, both = F.cross_entropy(scores, PUBLIC.labels[index], reduction="none")
    expected = (alone + epsilon * both + (1 - epsilon) * apart) / 2
    found = distilling(PUBLIC.labels, targets, taught, epsilon)(model, PUBLIC.images[index], index)
    torch.testing.assert_close(found, expected)
    assert divergence(scores, scores).tolist() == pytest.approx([0.0, 0.0], abs=1e-12)


def fold_of(strategy: FedGEMS, state: State, *scores: torch.Tensor) -> Folded:
    payload, fold = strategy.send(state, server_of()), strategy.fold()
    folded = FoldTree(fold, len(scores))
    for k, said in enumerate(scores):
        reply = Reply({"scores": {"scores": said} if len(said) else {}}, {"loss": 0.0}, k + 1)
        fold.check(reply, payload)
        folded.add_reply(k, k, reply)
    return fold.finish(folded.root())


def test_a_step_of_the_server_by_hand():
    """lr .25, full batch: labels alone of 0, 3 and 4, of which nobody is right; 1 from the pool, 2 from client 1."""
    strategy, server = FedGEMS(LINEAR), server_of(2)
    state = state_of(strategy)
    said = [torch.tensor([[0.0, 1, 0], [2, 0, 0]]), torch.tensor([[0.0, 0, 5], [0, 0, 3]])]
    model = server.build_model()
    scores = model(PUBLIC.images)
    ce = F.cross_entropy(scores, PUBLIC.labels, reduction="none")
    apart = divergence(torch.stack([state.knowledge["pool"][1], said[1][0]]).double(), scores[[1, 2]])
    shared = 0.75 * ce[[1, 2]] + 0.25 * apart
    ((ce[[0, 3, 4]].sum() + shared.sum()) / 5).backward()
    expected = model.head.weight.detach() - 0.25 * model.head.weight.grad
    after = strategy.update(state, fold_of(strategy, state, *said), server)
    torch.testing.assert_close(after.model["head.weight"], expected, rtol=1e-9, atol=1e-12)
    says = scores_of(server.model(after.model), PUBLIC.images)
    assert torch.equal(after.knowledge["says"], says)


def test_the_pool_keeps_what_the_server_said_when_it_was_right():
    knowledge = {"says": SAYS, "pool": torch.full((5, 3), 7.0), "known": KNOWN.to(torch.uint8)}
    noted = FedGEMS._noted(knowledge, PUBLIC.labels)
    assert noted["known"].tolist() == [1, 1, 0, 1, 0]
    assert torch.equal(noted["pool"][[0, 3]], SAYS[[0, 3]])
    assert torch.equal(noted["pool"][[1, 2, 4]], torch.full((3, 3), 7.0))
    later = FedGEMS._noted({**noted, "says": SAYS.roll(1, 1)}, PUBLIC.labels)
    assert later["known"].bool()[[0, 1, 3]].all() and torch.equal(later["pool"][0], SAYS[0])


def test_a_client_distils_once_the_server_has_learned_and_says_what_it_is_asked():
    strategy, remembered = FedGEMS(LINEAR), list[MemoryRecord]()
    state = state_of(strategy)
    first, later = (strategy.send(state, server_of(round_)) for round_ in (1, 2))
    assert first.trees["server"] == {} and torch.equal(later.trees["server"]["says"], SAYS)
    assert first.trees["index"]["rows"].tolist() == [2, 4]
    for payload in (first, later):
        reply = strategy.local(payload, client_of(remembered=remembered))
        model = linear()
        model.load_state_dict(dict(remembered[-1].trees["party"]))
        assert torch.equal(reply.trees["scores"]["scores"], scores_of(model, PUBLIC.images[[2, 4]]))
    one, other = (record.trees["party"]["head.weight"] for record in remembered)
    assert not torch.equal(one, other)
    strategy = FedGEMS(replace(LINEAR, digest_epochs=0))
    strategy.local(later, client_of(remembered=remembered))
    assert torch.equal(remembered[-1].trees["party"]["head.weight"], one)


def test_who_is_asked_for_nothing_says_nothing():
    strategy, server = FedGEMS(LINEAR), server_of(2)
    state = state_of(strategy, known=torch.ones(5, dtype=torch.bool))
    payload = strategy.send(state, server)
    reply = strategy.local(payload, client_of())
    assert payload.trees["index"]["rows"].numel() == 0 and reply.trees == {"scores": {}}
    strategy.fold().check(reply, payload)
    folded = fold_of(strategy, state, torch.zeros(0, CLASSES), torch.zeros(0, CLASSES))
    targets, taught = strategy.targets(state, folded, server)
    assert torch.equal(targets, state.knowledge["pool"]) and taught.tolist() == [False, True, True, False, True]
    assert strategy.update(state, folded, server).knowledge["known"].all()


def test_another_public_set_and_scores_of_another_shape_are_refused():
    strategy = FedGEMS(LINEAR)
    payload = strategy.send(state_of(strategy), server_of())
    with pytest.raises(ValueError, match="another public set"):
        strategy.local(payload, client_of(public=replace(PUBLIC, labels=PUBLIC.labels.flip(0))))
    for rows in (1, 3):
        with pytest.raises(BadReplyError, match="scores"):
            strategy.fold().check(Reply({"scores": {"scores": torch.zeros(rows, CLASSES)}}, {"loss": 0.0}, 4), payload)
    with pytest.raises(Refusal, match="needs public examples"):
        strategy.initial(replace(server_of(), public=None))
    with pytest.raises(Refusal, match="no party has such a model"):
        FedGEMS(Config(models=["cnn"], sizes={"mlp": {}}))


def test_models_of_several_kinds_teach_a_larger_one(tmp_path):
    asked = (
        *("strategy.name=fedgems", "data.public=0.2", "model.name=cnn", "model.sizes={width: 8, hidden: 32}"),
        "strategy.sizes={cnn: {width: 4, hidden: 16}, mlp: {hidden: 12, depth: 1}}",
    )
    run = small_run(tmp_path, *asked, "evaluate.clients=4", "run.rounds=4")
    assert run.summary["num_failures"] == 0 and run.summary["metrics"]["clients/test/accuracy"] > 0.3
    rows = pd.read_parquet(run.path / "metrics.parquet")
    known = rows[rows.metric == "public/known"].sort_values("round").value.tolist()
    assert len(known) == 4 and known == sorted(known) and 0 < known[-1] <= 1
    # Clients go forward and back through private and public examples, and once forward through those asked for.
    spent, passes = run.summary["spent"], run.summary["passes"]
    assert sum(each["backward"] for each in passes["clients"].values()) == spent["clients"]["examples"]
    (large,) = (each for spec, each in passes["server"].items() if '"hidden": 32' in spec)
    assert large["backward"] == spent["server"]["examples"] and large["forward"] > large["backward"]
    assert bits(small_run(tmp_path / "other", *asked, "strategy.epsilon=0.1")) != bits(
        small_run(tmp_path / "again", *asked)
    )

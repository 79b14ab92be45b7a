"""FedMD: the consensus and the digest by hand, what is remembered, what travels, and what is refused."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

from tests.helpers import bits, small_run
from tests.strategies.a_party import CLASSES, F64, LOCAL, PRIVATE, PUBLIC, client_of, linear, server_of
from umbel import models
from umbel.core.fold_tree import FoldTree
from umbel.core.losses import CrossEntropy
from umbel.core.names import UnknownNameError
from umbel.core.records import BadReplyError, Reply
from umbel.core.refusal import Refusal
from umbel.core.rng import generator
from umbel.strategies.creamfl.public import fingerprint
from umbel.strategies.fedmd import Config, FedMD, digest_objective
from umbel.strategies.parties import rows_of, scores_of

LINEAR = Config(models=["linear"], transfer_epochs=0)


def test_the_consensus_is_the_plain_mean_of_what_parties_say():
    strategy, server = FedMD(replace(LINEAR, public_per_round=3)), server_of()
    state = strategy.initial(server)
    phase = strategy.phase("score")
    payload = phase.broadcast(state, server)
    rows = payload.trees["index"]["rows"].long()
    assert len(rows) == 3 and rows.tolist() == sorted(set(rows.tolist()))
    said, fold = [], phase.fold()
    folded = FoldTree(fold, 3)
    for k in range(3):
        model = strategy.parties.remembered(client_of(k))
        said.append(model(PUBLIC.images[rows]).detach())
        reply = replace(phase.local(payload, client_of(k)), num_examples=k + 1)  # sizes do not count
        fold.check(reply, payload)
        folded.add_reply(k, k, reply)
    state = phase.update(state, fold.finish(folded.root()), server)
    assert not torch.equal(said[0], said[1])  # parties begin apart
    torch.testing.assert_close(state.consensus["scores"].double(), torch.stack(said).mean(0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("loss", ["absolute", "squared"])
def test_a_step_of_the_digest_and_of_the_revisit_by_hand(loss):
    """A full-batch step of each, lr .25: on mean |f - f~| (or its square), then on the cross-entropy."""
    strategy, remembered, server = FedMD(replace(LINEAR, loss=loss)), [], server_of()
    model = strategy.parties.remembered(client_of())
    consensus = torch.randn(5, CLASSES, generator=generator(3))
    weight, bias = (p.detach().clone() for p in (model.head.weight, model.head.bias))
    x, gap = PUBLIC.images.flatten(1), model(PUBLIC.images).detach() - consensus
    pull = (gap.sign() if loss == "absolute" else 2 * gap) / gap.numel()
    weight, bias = weight - 0.25 * pull.T @ x, bias - 0.25 * pull.sum(0)
    x, y = PRIVATE.images.flatten(1), PRIVATE.labels
    pull = ((x @ weight.T + bias).softmax(1) - torch.eye(CLASSES, dtype=F64)[y]) / len(y)
    weight, bias = weight - 0.25 * pull.T @ x, bias - 0.25 * pull.sum(0)

    state = replace(strategy.initial(server), consensus={"scores": consensus})
    phase = strategy.phase("digest")
    reply = phase.local(phase.broadcast(state, server), client_of(remembered=remembered))
    party = remembered[-1].trees["party"]
    torch.testing.assert_close(party["head.weight"], weight, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(party["head.bias"], bias, rtol=1e-10, atol=1e-12)
    assert reply.trees == {} and reply.num_examples == 4


def test_the_server_digests_as_a_party_without_data_of_its_own():
    strategy, server = FedMD(replace(LINEAR, loss="squared")), server_of(2)
    state = replace(strategy.initial(server), consensus={"scores": torch.zeros(5, CLASSES)})
    before = server.build_model()
    gap = before(PUBLIC.images).detach()
    after = strategy.after_digest(state, None, server).model
    expected = before.head.weight.detach() - 0.25 * 2 / gap.numel() * gap.T @ PUBLIC.images.flatten(1)
    torch.testing.assert_close(after["head.weight"], expected, rtol=1e-10, atol=1e-12)
    first = FedMD(replace(LINEAR, loss="squared", transfer_epochs=2)).after_digest(state, None, server_of(1)).model
    later = FedMD(replace(LINEAR, loss="squared", transfer_epochs=2)).after_digest(state, None, server).model
    assert torch.equal(later["head.weight"], after["head.weight"])
    assert not torch.equal(first["head.weight"], after["head.weight"])  # it trains on D_0 in the first round alone


def test_who_says_what_the_consensus_says_is_not_moved():
    model = linear()
    said = scores_of(model, PUBLIC.images)
    for loss in ("absolute", "squared"):
        value = digest_objective(said.double(), loss)(model, PUBLIC.images[[4, 1]], torch.tensor([4, 1]))
        assert value.item() == pytest.approx(0.0, abs=1e-7)
        assert digest_objective(said.double(), loss)(model, PUBLIC.images[[4]], torch.tensor([1])).item() > 0.01


def test_a_party_transfers_once_and_goes_on_from_what_it_remembers():
    strategy, server, remembered = FedMD(replace(LINEAR, transfer_epochs=3)), server_of(), []
    payload = strategy.ask(strategy.initial(server), server)
    strategy.score(payload, client_of(remembered=remembered))
    first = remembered[-1]
    untrained = FedMD(LINEAR).parties.remembered(client_of())
    assert not torch.equal(first.trees["party"]["head.weight"], untrained.head.weight)
    strategy.score(payload, client_of(remembered=remembered, memory=first))
    assert torch.equal(remembered[-1].trees["party"]["head.weight"], first.trees["party"]["head.weight"])


def test_rows_are_drawn_anew_and_without_repetition():
    assert rows_of(5, 0, generator(0)).tolist() == rows_of(5, 9, generator(0)).tolist() == [0, 1, 2, 3, 4]
    some = rows_of(50, 20, generator(0)).tolist()
    assert len(set(some)) == 20 and some == sorted(some) != rows_of(50, 20, generator(1)).tolist()


def test_another_public_set_and_scores_of_another_shape_are_refused():
    strategy, server = FedMD(LINEAR), server_of()
    payload = strategy.ask(strategy.initial(server), server)
    assert payload.numbers["public"] == fingerprint(PUBLIC)
    other = replace(PUBLIC, labels=PUBLIC.labels.flip(0))
    with pytest.raises(ValueError, match="another public set"):
        strategy.score(payload, replace(client_of(), public=other))
    with pytest.raises(BadReplyError, match="scores"):
        strategy.fold_scores().check(
            Reply({"scores": {"scores": torch.zeros(5, CLASSES + 1)}}, {"loss": 0.0}, 4), payload
        )


def test_models_of_several_kinds_learn_and_no_weights_travel(tmp_path):
    asked = (
        *("strategy.name=fedmd", "data.public=0.2", "strategy.models=[cnn, mlp]", "strategy.public_per_round=10"),
        *("strategy.sizes={cnn: {width: 4, hidden: 16}, mlp: {hidden: 12, depth: 1}}", "strategy.transfer_epochs=1"),
    )
    run = small_run(tmp_path, *asked)
    rows, scores = 10 * 4, 10 * 10 * 4
    assert run.summary["num_failures"] == 0
    assert run.summary["bytes_up"]["tensors"] == 2 * 4 * scores
    assert run.summary["bytes_down"]["tensors"] == 2 * 4 * (2 * rows + scores)
    kept = [load_file(path) for path in (run.path / "memory").rglob("*.safetensors")]
    built = (models.build("cnn", 10, 8, 1), models.build("mlp", 10, 8, 1, depth=1))
    assert {frozenset(each) for each in kept} == {
        frozenset(f"party/{name}" for name in model.state_dict()) for model in built
    }
    other = small_run(tmp_path / "other", *asked, "strategy.loss=squared", "evaluate.clients=4", "run.rounds=4")
    assert bits(other) != bits(run) and other.summary["metrics"]["clients/test/accuracy"] > 0.3


def test_what_no_party_can_have_is_refused():
    with pytest.raises(UnknownNameError, match="cnnn"):
        FedMD(Config(models=["cnnn"]))
    with pytest.raises(Refusal, match="no party has such a model") as refused:
        FedMD(Config(models=["cnn"], sizes={"mlp": {"hidden": 3}}))
    assert refused.value.key == "strategy.sizes.mlp"
    with pytest.raises(Refusal, match="should be a mapping"):
        FedMD(Config(models=["cnn"], sizes={"cnn": 3}))
    with pytest.raises(Refusal, match="needs public examples"):
        FedMD(LINEAR).ask(None, replace(server_of(), public=None))


def test_the_digest_is_of_the_images_that_the_consensus_is_about():
    """Not varied, where the private data are; nor are public examples prepared anew for it."""
    strategy, server, varied, prepared = FedMD(LINEAR), server_of(), [], []

    def augment(images, source):
        varied.append(images)
        return images

    def prepare(examples):
        prepared.append(examples)
        return examples.images, examples.labels

    state = replace(strategy.initial(server), consensus={"scores": torch.zeros(5, CLASSES)})
    client = client_of(augment=augment, prepare=prepare)
    strategy.digest(strategy.tell(state, server), client)
    assert [len(images) for images in varied] == [len(PRIVATE)]
    assert all(examples is PUBLIC or examples is PRIVATE for examples in prepared)


@pytest.mark.parametrize("how", [{"label_smoothing": 0.3}, {"class_weights": "balanced"}])
def test_the_server_transfers_by_the_loss_that_parties_have(how):
    """A full-batch step of lr .25 down the gradient of that loss, on D_0."""
    local = replace(LOCAL, **how)
    strategy, server = FedMD(replace(LINEAR, transfer_epochs=1, digest_epochs=1)), replace(server_of(), local=local)
    said: list[torch.Tensor] = []
    model = server.build_model()
    loss = CrossEntropy(local.label_smoothing, local.class_weights).of(PUBLIC.labels, CLASSES)
    loss(model(PUBLIC.images), PUBLIC.labels).backward()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter -= 0.25 * parameter.grad
        said.append(model(PUBLIC.images).float())
    # The consensus is what the model then says, so that the digest's squared distance leaves it where it is.
    strategy = FedMD(replace(strategy.config, loss="squared"))
    state = replace(strategy.initial(server), consensus={"scores": said[0]})
    after = strategy.after_digest(state, None, server).model
    torch.testing.assert_close(after["head.weight"], model.head.weight.detach(), rtol=0, atol=1e-6)

"""The personal half of FedLoGe: what a client predicts from hand-made heads, and how its head grows from psi."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tests.contexts import client_context
from umbel import models
from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload
from umbel.core.rng import generator
from umbel.core.training import LocalConfig
from umbel.core.tree import Tree
from umbel.data.types import Examples
from umbel.models.base import Model
from umbel.models.weights import load_state, shared_state
from umbel.strategies.base import ClientContext
from umbel.strategies.fedloge.frames import make_frame, pack_frame, unpack_frame
from umbel.strategies.fedloge.method import Config, FedLoGe

NUM_CLASSES, WIDTH, LR = 4, 6, 0.5
LABELS = torch.tensor([0, 1, 3, 0, 0, 3, 1])  # class 2 is absent
IMAGES = torch.rand(len(LABELS), 1, 3, 3, generator=generator(1))
OTHERS = torch.rand(9, 1, 3, 3, generator=generator(2))

# Rows of unequal lengths in both heads, so that no realignment is the identity, and a bias in both.
PSI = torch.randn(NUM_CLASSES, WIDTH, generator=generator(3)) * torch.tensor([0.5, 3.0, 1.0, 2.0])[:, None]
PHI = torch.randn(NUM_CLASSES, WIDTH, generator=generator(4)) * torch.tensor([2.0, 0.3, 1.5, 0.7])[:, None]
PSI_BIAS, PHI_BIAS = torch.tensor([0.4, -1.0, 0.3, 2.0]), torch.tensor([-0.2, 0.9, 1.1, -0.6])
OWN_HEAD = {"weight": PHI, "bias": PHI_BIAS}


def build() -> Model:
    return models.build("mlp", NUM_CLASSES, 3, 1, hidden=WIDTH, depth=1)


def shared(seed: int = 5, weight: Tensor = PSI, bias: Tensor = PSI_BIAS) -> dict[str, Tensor]:
    """A trunk theta of a seed under a given psi."""
    torch.manual_seed(seed)
    return shared_state(build()) | {"head.weight": weight, "head.bias": bias}


class Client:
    """One client with a memory of its own, driven by hand; a round is one step on all of its examples."""

    def __init__(self, trees: dict[str, Tree] | None = None) -> None:
        self.memory = None if trees is None else MemoryRecord(trees)

    def context(self, round_: int = 1) -> ClientContext:
        return client_context(
            Examples(IMAGES, LABELS),
            NUM_CLASSES,
            build(),
            round=round_,
            local=LocalConfig(epochs=1, batch_size=0, lr=LR, device="cpu"),
            memory=self.memory,
            remember=lambda record: setattr(self, "memory", record),
        )


def predicted(config: Config, trees: dict[str, Tree] | None) -> dict[str, Tensor]:
    """Logits of every predictor of a client with this memory."""
    predictors = FedLoGe(config).personal(Payload({"model": shared()}), Client(trees).context())
    with torch.no_grad():
        return {name: predictor.predict(OTHERS) for name, predictor in predictors.items()}


def features(tree: Tree, images: Tensor) -> Tensor:
    model = build()
    load_state(model, tree)
    with torch.no_grad():
        return model.eval().features(images)


def without_class_two(logits: Tensor) -> Tensor:
    masked = logits.clone()
    masked[:, 2] = -math.inf
    return masked


@pytest.mark.parametrize("form", ["phi", "psi"])
@pytest.mark.parametrize("align", [True, False])
def test_personal_predictors_by_their_formulas(form, align):
    logits_of = predicted(Config(personal_form=form, align=align, scale=1.7), {"head": OWN_HEAD})
    f = features(shared(), OTHERS)
    own, general = f @ PHI.T + PHI_BIAS, f @ PSI.T + PSI_BIAS
    # LA-FR: the rows of psi as they are, at the lengths of phi's rows; the bias is that of psi.
    aligned = f @ (PSI * PHI.square().sum(1, keepdim=True).sqrt()).T + PSI_BIAS
    expected = {
        "model": without_class_two((own if form == "phi" else general) + aligned),
        "phi": without_class_two(own),
        "generic": f @ (1.7 * PSI / PSI.square().sum(1, keepdim=True).sqrt()).T + PSI_BIAS if align else general,
    }
    if align:
        expected["psi"] = general  # without alignment it is `generic` itself
    assert logits_of.keys() == expected.keys()
    for name, logits in expected.items():
        torch.testing.assert_close(logits_of[name], logits, msg=lambda why, name=name: f"{name}: {why}")


def test_without_la_fr_the_personal_head_stands_alone():
    logits = predicted(Config(align_personal=False), {"head": OWN_HEAD})
    assert logits.keys() == {"model", "generic", "psi"}
    torch.testing.assert_close(logits["model"], without_class_two(features(shared(), OTHERS) @ PHI.T + PHI_BIAS))


def test_without_a_personal_head_the_generic_predictor_is_the_clients():
    logits = predicted(Config(personal=False), {"head": OWN_HEAD})
    assert logits.keys() == {"model", "psi"}
    rows = PSI / PSI.square().sum(1, keepdim=True).sqrt()
    torch.testing.assert_close(logits["model"], features(shared(), OTHERS) @ rows.T + PSI_BIAS)


@pytest.mark.parametrize("trees", [None, {"frame": {}}])
def test_a_client_that_never_trained_has_psi_for_both_heads(trees):
    logits = predicted(Config(), trees)
    f = features(shared(), OTHERS)
    general = f @ PSI.T + PSI_BIAS
    aligned = f @ (PSI * PSI.square().sum(1, keepdim=True).sqrt()).T + PSI_BIAS
    torch.testing.assert_close(logits["model"], without_class_two(general + aligned))
    torch.testing.assert_close(logits["phi"], without_class_two(general))


def one_step(weight: Tensor, bias: Tensor, f: Tensor) -> dict[str, Tensor]:
    """phi - lr dCE(phi f)/dphi on all examples at once: dCE/dlogits = (softmax - onehot) / N."""
    error = (torch.softmax(f @ weight.T + bias, 1) - F.one_hot(LABELS, NUM_CLASSES)) / len(LABELS)
    return {"weight": weight - LR * error.T @ f, "bias": bias - LR * error.sum(0)}


@pytest.mark.parametrize("frame", ["sparse", "none"])
def test_the_personal_head_begins_as_psi_and_goes_on_from_where_it_was(frame):
    config = Config(frame=frame, norm=1.0, sparsity=0.3)
    psi_sse = make_frame(config, WIDTH, NUM_CLASSES, generator(0))
    client = Client({"frame": pack_frame(psi_sse["weight"])} if psi_sse else None)
    strategy = FedLoGe(config)

    def train(round_: int, model: Tree) -> dict[str, Tensor]:
        reply = strategy.train(Payload({"model": model}), client.context(round_))
        assert reply.trees.keys() == {"delta"}
        # psi takes the same step from its own place, whatever phi_k does.
        general = one_step(model["head.weight"], model["head.bias"], features(model, IMAGES))
        for name, tensor in general.items():
            torch.testing.assert_close(reply.trees["delta"][f"head.{name}"], tensor - model[f"head.{name}"])
        return dict(client.memory.trees["head"])

    first_model = shared()
    first = train(1, first_model)
    for name, tensor in one_step(PSI, PSI_BIAS, features(first_model, IMAGES)).items():
        torch.testing.assert_close(first[name], tensor)

    # Others have moved theta and psi meanwhile: phi_k does not follow.
    second_model = shared(seed=6, weight=PSI.flip(0), bias=PSI_BIAS.flip(0))
    f = features(second_model, IMAGES)
    second = train(2, second_model)
    for name, tensor in one_step(first["weight"], first["bias"], f).items():
        torch.testing.assert_close(second[name], tensor)
        restarted = one_step(second_model["head.weight"], second_model["head.bias"], f)[name]
        assert not torch.allclose(second[name], restarted, atol=0.1) and not torch.allclose(second[name], first[name])
    if psi_sse:
        assert torch.equal(unpack_frame(client.memory.trees["frame"]), psi_sse["weight"])


def test_without_personal_heads_nothing_is_remembered():
    client = Client()
    FedLoGe(Config(frame="none", personal=False)).train(Payload({"model": shared()}), client.context())
    assert client.memory is None

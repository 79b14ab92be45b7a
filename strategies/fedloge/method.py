"""FedLoGe: joint local and generic federated learning under long-tailed data.

Xiao, Chen, Liu, Wang, Feng, Hao, Zhou, Wu, Yang, Liu. ICLR 2024, arXiv:2401.08977.

| paper | here | meaning |
|---|---|---|
| theta | the model without its head | shared trunk |
| psi_SSE | `State.frame`, memory tree `frame` | fixed sparse frame that trains the trunk; the same for all |
| psi | the model's head | global auxiliary head, averaged |
| phi_k | memory tree `head` | personal head; never leaves the client |
| beta, gamma | `Config.sparsity`, `Config.norm` | share of the frame's entries that is dropped; length of its vectors |
| psi' | `realign_global` | GA-FR: the generic predictor |
| phi'_k | `realign_personal` | LA-FR: added to phi_k in the personal predictor |

    once         psi_SSE: a simplex frame without a share beta of its entries, made equiangular again (SSE-C)
    local step   f = theta(x); theta by CE(psi_SSE f), psi by CE(psi sg(f)), phi_k by CE(phi_k sg(f))
    server       theta, psi: means weighted by examples
    generic      psi'_c = psi_c / ||psi_c||
    personal     phi_k(f) + phi'_k(f), phi'_kc = psi_c ||phi_kc||, over the classes that the client has

sg stops the gradient. The three losses share no parameter, so that one pass over their sum steps each as its own
optimiser would.

Where the authors' code differs: its frame has a random bias that is never trained (there is none here); it masks
absent classes by -1e10 in the weights, which is a mask for non-negative features only (minus infinity in the logits
here), and by the classes of the local test set (those of the training set here); `scale=1.7` is its length of
psi'_c, which matters beside a bias only; its README has phi'_k(f) + psi(f) for the personal form. A personal head
begins as the global head in the first round that its client takes part in.

Legend: B batch, D features, C classes.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

from umbel.core import metrics
from umbel.core.folds import Folded, Product, Sum, product
from umbel.core.memory import MemoryRecord
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.tree import Tree, subtract
from umbel.models.base import Model
from umbel.strategies import neural_collapse
from umbel.strategies.base import (
    ClientContext,
    Phase,
    Predictor,
    ServerContext,
    Setting,
    Strategy,
    initial_model,
    server_step,
)
from umbel.strategies.fedavg import WEIGHTINGS, mean_fold
from umbel.strategies.fedloge.frames import make_frame, pack_frame, unpack_frame
from umbel.strategies.fedloge.heads import (
    Heads,
    bias_of,
    headed,
    personal_logits,
    realign_global,
    realign_personal,
    sum_of_losses,
)
from umbel.strategies.neural_collapse import Collapse
from umbel.strategies.phase import no_pass
from umbel.strategies.setting import refuse_other_losses


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FedLoGe; each of its parts can be turned off.

    Attributes:
        frame: What trains the trunk: `sparse` (SSE-C), `etf` (the frame with all entries), or `none` (psi itself, as
            FedAvg does).
        sparsity: beta, share of the frame's entries that is dropped.
        norm: gamma, length of the frame's vectors.
        balanced_mask: Drop the same number of entries of each class, in place of a share of all.
        bias: Give psi and phi_k a bias; without, it stays 0.
        align: GA-FR: the generic predictor's rows at one length.
        scale: That length.
        personal: Train a personal head and evaluate it; without, clients evaluate the generic model.
        align_personal: LA-FR: add phi'_k to the personal predictor.
        personal_form: What phi'_k is added to: `phi` (the paper, the authors' code) or `psi` (their README).
        collapse: Measure neural collapse over all clients' training examples every so many rounds; 0 never.
        weighting: `examples`, or `uniform`.
        server_lr: Learning rate of the server's step.
    """

    frame: Annotated[str, OneOf("sparse", "etf", "none")] = "sparse"
    sparsity: Annotated[float, Interval(ge=0, lt=1)] = 0.6
    norm: Annotated[float, Gt(0)] = 0.1
    balanced_mask: bool = False
    bias: bool = True
    align: bool = True
    scale: Annotated[float, Gt(0)] = 1.0
    personal: bool = True
    align_personal: bool = True
    personal_form: Annotated[str, OneOf("phi", "psi")] = "phi"
    collapse: Annotated[int, Ge(0)] = 0
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "examples"
    server_lr: Annotated[float, Gt(0)] = 1.0


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: theta and psi.
        frame: psi_SSE as `weight` [C, D], or nothing.
        counts: `examples` [C] float64, training examples of each class over all clients; empty before the first round.
        num_told: How many clients these are, which have the frame too.
        everyone: Whether these are all.
        rounds: Rounds so far.
        means: Of the features of each class, between the two phases that measure collapse.
        collapse: What was measured last.
    """

    model: dict[str, Tensor]
    frame: dict[str, Tensor]
    counts: dict[str, Tensor]
    num_told: int = 0
    everyone: bool = False
    rounds: int = 0
    means: dict[str, Tensor] = field(default_factory=dict)
    collapse: dict[str, float] = field(default_factory=dict)


def counts_like(num_classes: int) -> dict[str, Tensor]:
    """Return what a client sends of its classes, without content."""
    return {"examples": torch.empty(num_classes, device="meta")}


class FedLoGe(Strategy[State]):
    """A fixed frame trains the trunk; a global and a personal head learn on top and are realigned by length."""

    config_class = Config
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.personal_form == "psi" and not config.align_personal:
            raise Refusal(
                "strategy.personal_form=psi adds phi' to psi, and strategy.align_personal=false leaves phi' out, which "
                "would be no personal predictor.",
                key="strategy.personal_form",
                remedy="Set strategy.personal_form=phi or strategy.align_personal=true.",
            )

    def check(self, setting: Setting) -> None:
        refuse_other_losses(setting, "fedloge")
        if setting.schedule.is_sequence:
            raise Refusal(
                "FedLoGe takes what it knows of the classes once, in the first round, and does not go "
                "with a sequence of tasks.",
                key="data.rounds_per_task",
                remedy="Set data.rounds_per_task=0.",
            )
        if setting.client.clip_norm:
            raise Refusal(
                "FedLoGe's three losses are three optimisations, which one gradient norm would tie together.",
                key="client.clip_norm",
                remedy="Set client.clip_norm=0.",
            )

    def initial(self, server: ServerContext) -> State:
        model = initial_model(server)
        num_classes, width = model["head.weight"].shape
        if not self.config.bias and "head.bias" in model:
            model["head.bias"] = torch.zeros_like(model["head.bias"])
        return State(model, make_frame(self.config, width, num_classes, server.rng("frame")), {})

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (
            Phase(
                "classes",
                self.send_frame,
                self.count,
                self.fold_counts,
                self.after_classes,
                "everyone",
                num_processed=no_pass,
            ),
            Phase("train", self.send_model, self.train, self.fold_deltas, self.after_train),
            *neural_collapse.phases(
                self.model,
                self._other_heads,
                get=lambda state: Collapse(state.means, state.collapse),
                put=lambda state, measured: replace(state, means=measured.means, collapse=measured.values),
            ),
        )

    def phases(self, state: State) -> tuple[Phase[State], ...]:
        classes, train, *collapse = self.every_phase()
        every = self.config.collapse
        first = () if state.everyone else (classes,)  # again for those who were not there
        last = collapse if every and (state.rounds + 1) % every == 0 else ()
        return (*first, train, *last)

    # ---- classes: the frame goes out, counts of classes come back --------------------------------------------

    def send_frame(self, state: State, server: ServerContext) -> Payload:
        frame = pack_frame(state.frame["weight"]) if state.frame else {}
        return Payload({"frame": frame}, {"classes": float(len(state.model["head.weight"]))})

    def count(self, payload: Payload, client: ClientContext) -> Reply:
        if payload.trees.get("frame"):
            client.remember(MemoryRecord({**_remembered(client), "frame": dict(payload.trees["frame"])}))
        counts = torch.bincount(client.train_data.labels, minlength=client.num_classes)
        return Reply({"counts": {"examples": counts.to(torch.float64)}}, {}, client.num_examples)

    def fold_counts(self) -> Product:
        return product({"counts": Sum(lambda payload: counts_like(int(payload.numbers["classes"])))})

    def after_classes(self, state: State, folded: Folded, server: ServerContext) -> State:
        if folded.num_replies < state.num_told:
            return state
        everyone = folded.num_replies == server.num_clients
        counts = dict(folded.trees["counts"])
        return replace(state, counts=counts, num_told=folded.num_replies, everyone=everyone)

    # ---- train: theta by the frame, psi and phi_k on top -----------------------------------------------------

    def send_model(self, state: State, server: ServerContext) -> Payload:
        return Payload({"model": state.model})  # psi as it is trained, not realigned

    def train(self, payload: Payload, client: ClientContext) -> Reply:
        model = client.model(payload.trees["model"])
        frame = self._frame(model, client)
        head = self._personal_head(model, client) if self.config.personal else None
        heads = Heads(model, frame, head, self.config.bias)
        report = replace(client, loss=sum_of_losses).train(heads)
        if head is not None:
            own = {name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}
            client.remember(MemoryRecord({**_remembered(client), "head": own}))
        delta = subtract(client.weights(model), payload.trees["model"])
        return Reply({"delta": delta}, {"loss": report.loss}, client.num_examples)

    def _frame(self, model: Model, client: ClientContext) -> Tensor | None:
        """Return psi_SSE [C, D] out of the client's memory, as its model computes; None with `frame=none`."""
        if self.config.frame == "none":
            return None
        packed = _remembered(client).get("frame")
        if packed is None:
            raise ValueError(
                "This client has no frame yet: it did not answer in the phase `classes`, in which everyone gets it. "
                "The phase is repeated in the next round."
            )
        return unpack_frame(packed).to(client.device, model.head.weight.dtype)

    def _personal_head(self, model: Model, client: ClientContext) -> nn.Linear:
        """Return phi_k, which begins as psi."""
        personal: nn.Linear = copy.deepcopy(model.head)
        known = _remembered(client).get("head")
        if known is not None:
            personal.load_state_dict(dict(known))
        return personal

    def fold_deltas(self) -> Product:
        return product({"delta": mean_fold(self.config.weighting, "model")}, numbers=["loss"])

    def after_train(self, state: State, folded: Folded, server: ServerContext) -> State:
        stepped = server_step(state.model, folded.trees["delta"], self.config.server_lr)
        return replace(state, model=stepped, rounds=state.rounds + 1)

    # ---- features, nearest: neural collapse (umbel.strategies.neural_collapse) -------------------------------

    def _other_heads(self, state: State) -> dict[str, Tensor]:
        """Return the heads whose alignment is measured beside the generic one's: the unaligned one, the frame."""
        heads = {"psi": state.model["head.weight"]} if self.config.align else {}
        return heads | ({"frame": state.frame["weight"]} if state.frame else {})

    # ---- what is evaluated -----------------------------------------------------------------------------------

    def model(self, state: State) -> dict[str, Tensor]:
        """Return theta and the realigned psi'."""
        if not self.config.align:
            return state.model
        return state.model | {"head.weight": realign_global(state.model["head.weight"], self.config.scale)}

    def predictors(self, state: State, server: ServerContext) -> Mapping[str, Predictor]:
        groups = metrics.split_at(state.counts["examples"]) if state.counts else None
        model = server.model(state.model)  # one trunk under all heads
        shared_bias = bias_of(model.head)
        heads = {"model": (self.model(state)["head.weight"], shared_bias)}
        if self.config.align:
            heads["psi"] = (state.model["head.weight"], shared_bias)
        if state.frame:
            heads["frame"] = (state.frame["weight"], None)
        return {
            name: Predictor(headed(model, weight.to(model.head.weight), bias), groups=groups)
            for name, (weight, bias) in heads.items()
        }

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        model = client.model(payload.trees["model"]).eval()
        psi, shared_bias = model.head.weight.detach(), bias_of(model.head)
        generic = realign_global(psi, self.config.scale) if self.config.align else psi
        others = {"generic": Predictor(lambda x: F.linear(model.features(x), generic, shared_bias))}
        if self.config.align:
            others["psi"] = Predictor(model)
        if not self.config.personal:
            return {"model": others.pop("generic"), **others}
        head = self._personal_head(model, client)
        phi, own_bias = head.weight.detach(), bias_of(head)
        present = torch.bincount(client.train_data.labels, minlength=client.num_classes).to(psi.device) > 0
        nothing = torch.zeros_like(phi)

        def alone(x: Tensor) -> Tensor:
            return personal_logits(model.features(x), phi, nothing, present, own_bias)

        if not self.config.align_personal:
            return {"model": Predictor(alone), **others}
        aligned = realign_personal(psi, phi)
        first, bias = (phi, own_bias) if self.config.personal_form == "phi" else (psi, shared_bias)

        def both(x: Tensor) -> Tensor:
            return personal_logits(model.features(x), first, aligned, present, bias, shared_bias)

        return {"model": Predictor(both), "phi": Predictor(alone), **others}


def _remembered(client: ClientContext) -> dict[str, Tree]:
    return dict(client.memory.trees) if client.memory else {}

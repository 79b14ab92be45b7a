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
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from umbel.core.folds import Folded, Product, Sum, product
from umbel.core.memory import MemoryRecord
from umbel.core.metrics import Predict, collapse
from umbel.core.records import Payload, Reply
from umbel.core.training import LocalConfig
from umbel.core.tree import Tree, subtract
from umbel.models.base import Model
from umbel.strategies import neural_collapse
from umbel.strategies.base import (
    TRAIN,
    ClientContext,
    Phase,
    Predictor,
    ServerContext,
    Strategy,
    initial_model,
    server_step,
)
from umbel.strategies.fedavg import check_weighting, mean_fold
from umbel.strategies.neural_collapse import FEATURES, NEAREST

CLASSES = Phase("classes", "everyone")


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

    frame: str = "sparse"
    sparsity: float = 0.6
    norm: float = 0.1
    balanced_mask: bool = False
    bias: bool = True
    align: bool = True
    scale: float = 1.0
    personal: bool = True
    align_personal: bool = True
    personal_form: str = "phi"
    collapse: int = 0
    weighting: str = "examples"
    server_lr: float = 1.0


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


_ITERATIONS = 2000
_COSINE_TOLERANCE = 0.2  # a random mask now and then leaves two classes nothing in common, so that their cosine is 0


def simplex_etf(num_features: int, num_classes: int, generator: torch.Generator) -> Tensor:
    """Return a simplex equiangular tight frame: C unit vectors, each two at the cosine -1 / (C - 1).

    M = sqrt(C / (C - 1)) P (I - 1 1' / C), with the orthonormal columns of P from a QR decomposition.

    Args:
        num_features: D, at least C.
        num_classes: C, at least 2.
        generator: Of the uniform numbers that P is made of.

    Returns:
        [D, C], its Gram matrix is C / (C - 1) (I - 1 1' / C).

    Raises:
        ValueError: There are fewer features than classes, or fewer than two classes.
    """
    if num_classes < 2 or num_features < num_classes:
        raise ValueError(
            f"Expected at least 2 classes and as many features as classes, found {num_classes} classes and "
            f"{num_features} features."
        )
    uniform = torch.rand(num_features, num_classes, generator=generator, dtype=torch.float64)
    p, _ = torch.linalg.qr(uniform)
    centred = torch.eye(num_classes, dtype=torch.float64) - 1 / num_classes
    frame: Tensor = math.sqrt(num_classes / (num_classes - 1)) * p @ centred
    return frame.to(torch.get_default_dtype())


def sparse_etf(etf_DC: Tensor, keep_mask_DC: Tensor, norm: float = 0.1) -> Tensor:
    """Return the frame nearest to equiangular that uses the kept entries only (SSE-C).

    The paper runs 10,000 steps of Adam on the largest cosine of each vector. Here all cosines are fitted to
    -1 / (C - 1) in the least-squares sense by L-BFGS over the directions, with the lengths exact.

    Args:
        etf_DC: [D, C], where to begin.
        keep_mask_DC: [D, C] bool, entries that may differ from 0.
        norm: Length gamma of each vector.

    Returns:
        [D, C] in the dtype of `etf_DC`.

    Raises:
        ValueError: Shapes differ, or a class keeps no entry.
    """
    if keep_mask_DC.shape != etf_DC.shape or keep_mask_DC.dtype != torch.bool:
        raise ValueError(
            f"Expected a bool mask of shape {list(etf_DC.shape)}, found {keep_mask_DC.dtype} of shape "
            f"{list(keep_mask_DC.shape)}."
        )
    bare = (~keep_mask_DC.any(0)).nonzero().flatten().tolist()
    if bare:
        raise ValueError(f"The mask keeps nothing of the classes {bare}: their vectors would be zero.")
    num_classes = etf_DC.shape[1]
    if num_classes < 2:
        raise ValueError("Expected at least two classes: one vector has no angle to another.")
    rows, columns = keep_mask_DC.nonzero(as_tuple=True)
    start = etf_DC.detach().to(torch.float64)[rows, columns]
    lone = torch.zeros(num_classes, dtype=torch.float64).index_add_(0, columns.cpu(), start.abs().cpu()) == 0
    start = torch.where(lone.to(columns.device)[columns], torch.ones_like(start), start)  # nothing to begin from
    free = start.clone().requires_grad_(True)
    target = -1 / (num_classes - 1)
    others = ~torch.eye(num_classes, dtype=torch.bool, device=etf_DC.device)

    def directions() -> Tensor:
        whole = torch.zeros(etf_DC.shape, dtype=torch.float64, device=etf_DC.device)
        whole = whole.index_put((rows, columns), free)
        lengths: Tensor = torch.linalg.norm(whole, dim=0)
        return whole / lengths

    optimizer = torch.optim.LBFGS(
        [free],
        max_iter=_ITERATIONS,
        max_eval=2 * _ITERATIONS,
        tolerance_grad=1e-12,
        tolerance_change=1e-18,
        history_size=20,
        line_search_fn="strong_wolfe",
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        unit = directions()
        loss = ((unit.T @ unit)[others] - target).square().sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        frame: Tensor = (norm * directions()).to(etf_DC.dtype)
    return frame


def realign_global(weight_CD: Tensor, scale: float = 1.0) -> Tensor:
    """Return GA-FR: the rows of the global head at one length, psi'_c = scale * psi_c / ||psi_c||.

    Args:
        weight_CD: psi, [C, D].
        scale: The length; the authors' code takes 1.7, which matters only beside a bias.
    """
    lengths: Tensor = torch.linalg.norm(weight_CD, dim=1, keepdim=True)
    return scale * weight_CD / torch.where(lengths > 0, lengths, torch.ones_like(lengths))


def realign_personal(global_weight_CD: Tensor, personal_weight_CD: Tensor) -> Tensor:
    """Return LA-FR: phi'_c = psi_c ||phi_c||, the global directions at the personal lengths.

    Args:
        global_weight_CD: psi, [C, D]; not normalised before.
        personal_weight_CD: phi, [C, D].
    """
    lengths: Tensor = torch.linalg.norm(personal_weight_CD, dim=1, keepdim=True)
    return global_weight_CD * lengths


def personal_logits(
    features_BD: Tensor,
    personal_weight_CD: Tensor,
    realigned_weight_CD: Tensor,
    present_C: Tensor,
    personal_bias_C: Tensor | None = None,
    realigned_bias_C: Tensor | None = None,
) -> Tensor:
    """Return phi(f) + phi'(f) of the classes that a client has, minus infinity for the others.

    Args:
        features_BD: f, [B, D].
        personal_weight_CD: phi, [C, D].
        realigned_weight_CD: phi', [C, D].
        present_C: [C] bool, classes among the client's training labels.
        personal_bias_C: [C], or none.
        realigned_bias_C: [C], or none.
    """
    logits = features_BD @ (personal_weight_CD + realigned_weight_CD).T
    for bias in (personal_bias_C, realigned_bias_C):
        if bias is not None:
            logits = logits + bias
    return logits.masked_fill(~present_C, -math.inf)


def make_frame(config: Config, num_features: int, num_classes: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Return psi_SSE as `weight` [C, D]; nothing with `frame=none`.

    Raises:
        ValueError: There are fewer features than classes, or the entries that are kept are too few for the cosines.
    """
    if config.frame == "none":
        return {}
    if num_features < num_classes:
        raise ValueError(
            f"strategy.frame={config.frame} needs at least as many features as classes, and the model has "
            f"{num_features} features for {num_classes} classes. Widen it (model.sizes), or set strategy.frame=none."
        )
    etf = simplex_etf(num_features, num_classes, generator)
    if config.frame == "etf":
        return {"weight": (config.norm * etf).T.contiguous()}
    scores = torch.rand(num_features, num_classes, generator=generator)
    if config.balanced_mask:
        dropped = min(round(config.sparsity * num_features), num_features - 1)
        keep = scores.argsort(0).argsort(0) >= dropped
    else:
        ranks = scores.flatten().argsort().argsort().view_as(scores)
        keep = ranks >= round(config.sparsity * scores.numel())
        keep |= (scores == scores.amax(0)) & ~keep.any(0)  # a class keeps one entry at least
    frame = sparse_etf(etf, keep, config.norm).T.contiguous()
    missed = cosine_error(frame)
    if not missed <= _COSINE_TOLERANCE:
        raise ValueError(
            f"strategy.sparsity={config.sparsity} leaves a frame of {num_classes} classes and {num_features} features "
            f"too few entries: two classes miss their cosine of {-1 / (num_classes - 1):.3f} by {missed:.3f}, and "
            f"{_COSINE_TOLERANCE} is allowed. Lower strategy.sparsity, widen the model (model.sizes), or set "
            "strategy.frame=none."
        )
    return {"weight": frame}


def cosine_error(weight_CD: Tensor) -> float:
    """Return how far the cosines of the rows of a frame are from -1 / (C - 1), at most."""
    unit = F.normalize(weight_CD.to(torch.float64), dim=1)
    missed = unit @ unit.T + 1 / (len(unit) - 1)
    return float(missed.fill_diagonal_(0).abs().max())


def pack_frame(weight_CD: Tensor) -> dict[str, Tensor]:
    """Return a frame as it travels: its entries that are not 0 and one bit an entry that says where they are.

    Args:
        weight_CD: [C, D].

    Returns:
        `values` [nnz] in the frame's dtype, `mask` [ceil(C D / 8)] uint8, `shape` [2] int32.
    """
    kept = weight_CD != 0
    bits = F.pad(kept.flatten().to(torch.uint8), (0, -kept.numel() % 8)).view(-1, 8)
    powers = 2 ** torch.arange(8, dtype=torch.uint8)
    mask = (bits * powers).sum(1).to(torch.uint8)
    return {"values": weight_CD[kept], "mask": mask, "shape": torch.tensor(kept.shape, dtype=torch.int32)}


def unpack_frame(packed: Mapping[str, Tensor]) -> Tensor:
    """Return the frame [C, D] of `pack_frame`, bit for bit."""
    num_classes, width = packed["shape"].tolist()
    bits = packed["mask"][:, None] >> torch.arange(8, dtype=torch.uint8) & 1
    kept = bits.flatten()[: num_classes * width].bool().view(num_classes, width)
    frame = packed["values"].new_zeros(num_classes, width)
    frame[kept] = packed["values"]
    return frame


def counts_like(num_classes: int) -> dict[str, Tensor]:
    """Return what a client sends of its classes, without content."""
    return {"examples": torch.empty(num_classes, device="meta")}


class _Heads(Model):
    """The trunk under up to three heads; heads other than the trunk's own see features without a gradient."""

    def __init__(self, model: Model, frame: Tensor | None, personal: nn.Linear | None, bias: bool = True) -> None:
        super().__init__()
        self.num_features, self.in_channels, self.image_size = model.num_features, model.in_channels, model.image_size
        self.model, self.personal, self.frame, self.bias = model, personal, frame, bias

    def forward(self, x: Tensor) -> Tensor:
        """Return logits [H, B, C] of the heads psi_SSE (if there is one), psi and phi_k (if there is one)."""
        f = self.model.features(x)
        still = f.detach()
        heads = [] if self.frame is None else [F.linear(f, self.frame)]
        heads.append(self._logits(self.model.head, f if self.frame is None else still))
        if self.personal is not None:
            heads.append(self._logits(self.personal, still))
        return torch.stack(heads)

    def _logits(self, head: nn.Linear, f: Tensor) -> Tensor:
        # A bias that is not used gets no gradient, so that it stays at 0.
        return F.linear(f, head.weight, head.bias if self.bias else None)


def sum_of_losses(logits_HBC: Tensor, labels_B: Tensor) -> Tensor:
    """Return the sum of the heads' cross-entropies, each a mean over B."""
    losses = [F.cross_entropy(logits, labels_B) for logits in logits_HBC]
    return torch.stack(losses).sum()


def split_at(counts_C: Tensor, shares: tuple[float, float] = (0.75, 0.95)) -> Tensor:
    """Return 0 (head), 1 (middle) or 2 (tail) for each class, [C] int64.

    Classes are taken from the largest on; a class is in the group in which the examples before it end.

    Args:
        counts_C: [C], examples of each class.
        shares: Shares of all examples at which the head and the middle end.
    """
    order = counts_C.argsort(descending=True, stable=True)
    before = counts_C[order].to(torch.float64).cumsum(0) - counts_C[order]
    share = before / counts_C.sum()
    groups = torch.empty_like(order)
    groups[order] = (share >= shares[0]).long() + (share >= shares[1]).long()
    return groups


class FedLoGe(Strategy[State]):
    """A fixed frame trains the trunk; a global and a personal head learn on top and are realigned by length."""

    config_class = Config
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        check_weighting(config.weighting)
        if config.frame not in ("sparse", "etf", "none"):
            raise ValueError(f"strategy.frame should be sparse, etf or none, found {config.frame!r}")
        if not 0 <= config.sparsity < 1:
            raise ValueError(f"strategy.sparsity should be in [0, 1), found {config.sparsity}")
        for key in ("norm", "scale", "server_lr"):
            if not 0 < getattr(config, key) < math.inf:
                raise ValueError(f"strategy.{key} should be a finite number above 0, found {getattr(config, key)}")
        if config.personal_form not in ("phi", "psi"):
            raise ValueError(f"strategy.personal_form should be phi or psi, found {config.personal_form!r}")
        if config.personal_form == "psi" and not config.align_personal:
            raise ValueError(
                "strategy.personal_form=psi adds phi' to psi, and strategy.align_personal=false leaves phi' out, which "
                "would be no personal predictor. Set strategy.personal_form=phi or strategy.align_personal=true."
            )
        if config.collapse < 0:
            raise ValueError(f"strategy.collapse should be at least 0 (0 never measures), found {config.collapse}")

    def check(self, local: LocalConfig) -> None:
        if local.clip_norm:
            raise ValueError(
                "FedLoGe's three losses are three optimisations, which one gradient norm would tie together. Set "
                "client.clip_norm=0."
            )

    # ---- server ----------------------------------------------------------------------------------------------

    def initial(self, server: ServerContext) -> State:
        model = initial_model(server)
        num_classes, width = model["head.weight"].shape
        if not self.config.bias and "head.bias" in model:
            model["head.bias"] = torch.zeros_like(model["head.bias"])
        return State(model, make_frame(self.config, width, num_classes, server.rng("frame")), {})

    def phases(self, state: State) -> tuple[Phase, ...]:
        first = () if state.everyone else (CLASSES,)  # again for those who were not there
        every = self.config.collapse
        last = (FEATURES, NEAREST) if every and (state.rounds + 1) % every == 0 else ()
        return (*first, TRAIN, *last)

    def broadcast(self, phase: Phase, state: State, server: ServerContext) -> Payload:
        if phase.name == CLASSES.name:
            frame = pack_frame(state.frame["weight"]) if state.frame else {}
            return Payload({"frame": frame}, {"classes": float(len(state.model["head.weight"]))})
        if phase.name in (FEATURES.name, NEAREST.name):
            return neural_collapse.payload(phase, self.model(state), state.means)
        return Payload({"model": state.model})

    def fold(self, phase: Phase) -> Product:
        if phase.name == CLASSES.name:
            return product({"counts": Sum(lambda payload: counts_like(int(payload.numbers["classes"])))})
        if phase.name in (FEATURES.name, NEAREST.name):
            return neural_collapse.fold(phase)
        return product({"delta": mean_fold(self.config.weighting, "model")}, numbers=["loss"])

    def update(self, phase: Phase, state: State, folded: Folded, server: ServerContext) -> State:
        if phase.name == CLASSES.name:
            if folded.num_replies < state.num_told:
                return state
            everyone = folded.num_replies == server.num_clients
            counts = dict(folded.trees["counts"])
            return replace(state, counts=counts, num_told=folded.num_replies, everyone=everyone)
        if phase.name == FEATURES.name:
            sums = neural_collapse.sums(folded)
            return replace(state, means=neural_collapse.means(sums), collapse=self._collapse(state, sums))
        if phase.name == NEAREST.name:
            measured = state.collapse | {"nc4": folded.numbers["agreement"]}
            return replace(state, means={}, collapse=measured)
        stepped = server_step(state.model, folded.trees["delta"], self.config.server_lr)
        return replace(state, model=stepped, rounds=state.rounds + 1)

    def measured(self, phase: Phase, state: State) -> Mapping[str, float]:
        if phase.name != NEAREST.name:
            return {}
        return {f"collapse/{name}": value for name, value in state.collapse.items()}

    def _collapse(self, state: State, sums: collapse.ClassSums) -> dict[str, float]:
        """Return NC1 to NC3 of the generic model, and NC3 of the unaligned head and the frame."""
        found = collapse.describe(sums, self.model(state)["head.weight"])
        others = {"psi": state.model["head.weight"]} if self.config.align else {}
        if state.frame:
            others["frame"] = state.frame["weight"]
        for name, weight in others.items():
            found |= {f"{name}/{key}": v for key, v in collapse.describe(sums, weight).items() if key == "nc3"}
        return found

    def model(self, state: State) -> dict[str, Tensor]:
        """Return theta and the realigned psi'."""
        if not self.config.align:
            return state.model
        return state.model | {"head.weight": realign_global(state.model["head.weight"], self.config.scale)}

    def predictors(self, state: State, server: ServerContext) -> Mapping[str, Predictor]:
        groups = split_at(state.counts["examples"]) if state.counts else None
        model = server.model(state.model)  # one trunk under all heads
        bias = _bias(model.head)
        heads = {"model": (self.model(state)["head.weight"], bias)}
        if self.config.align:
            heads["psi"] = (state.model["head.weight"], bias)
        if state.frame:
            heads["frame"] = (state.frame["weight"], None)
        return {
            name: Predictor(_headed(model, weight.to(model.head.weight), own), groups=groups)
            for name, (weight, own) in heads.items()
        }

    # ---- client ----------------------------------------------------------------------------------------------

    def local(self, phase: Phase, payload: Payload, client: ClientContext) -> Reply:
        if phase.name == CLASSES.name:
            return self._count(payload, client)
        if phase.name in (FEATURES.name, NEAREST.name):
            return neural_collapse.local(phase, payload, client)
        model = client.model(payload.trees["model"])
        frame = self._frame(client)
        head = self._personal_head(model, client) if self.config.personal else None
        frame = None if frame is None else frame.to(client.device, model.head.weight.dtype)
        heads = _Heads(model, frame, head, self.config.bias)
        report = replace(client, loss=sum_of_losses).train(heads)
        if head is not None:
            own = {name: tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}
            client.remember(MemoryRecord({**_remembered(client), "head": own}))
        delta = subtract(client.weights(model), payload.trees["model"])
        return Reply({"delta": delta}, {"loss": report.loss}, client.num_examples)

    def _count(self, payload: Payload, client: ClientContext) -> Reply:
        """Put the frame away and say how many examples of each class there are."""
        if payload.trees.get("frame"):
            client.remember(MemoryRecord({**_remembered(client), "frame": dict(payload.trees["frame"])}))
        counts = torch.bincount(client.train_data.labels, minlength=client.num_classes)
        return Reply({"counts": {"examples": counts.to(torch.float64)}}, {}, client.num_examples)

    def _frame(self, client: ClientContext) -> Tensor | None:
        """Return psi_SSE [C, D] out of the client's memory; None with `frame=none`."""
        if self.config.frame == "none":
            return None
        packed = _remembered(client).get("frame")
        if packed is None:
            raise ValueError(
                "This client has no frame yet: it did not answer in the phase `classes`, in which everyone gets it. "
                "The phase is repeated in the next round."
            )
        return unpack_frame(packed)

    def _personal_head(self, model: Model, client: ClientContext) -> nn.Linear:
        """Return phi_k, which begins as psi."""
        personal: nn.Linear = copy.deepcopy(model.head)
        known = _remembered(client).get("head")
        if known is not None:
            personal.load_state_dict(dict(known))
        return personal

    def personal(self, payload: Payload, client: ClientContext) -> Mapping[str, Predictor]:
        model = client.model(payload.trees["model"]).eval()
        psi, shared_bias = model.head.weight.detach(), _bias(model.head)
        generic = realign_global(psi, self.config.scale) if self.config.align else psi
        found = {"generic": Predictor(lambda x: F.linear(model.features(x), generic, shared_bias))}
        if self.config.align:
            found["psi"] = Predictor(model)
        if not self.config.personal:
            return {"model": found.pop("generic"), **found}
        head = self._personal_head(model, client)
        phi, own_bias = head.weight.detach(), _bias(head)
        present = torch.bincount(client.train_data.labels, minlength=client.num_classes).to(psi.device) > 0
        nothing = torch.zeros_like(phi)

        def alone(x: Tensor) -> Tensor:
            return personal_logits(model.features(x), phi, nothing, present, own_bias)

        if not self.config.align_personal:
            return {"model": Predictor(alone), **found}
        aligned = realign_personal(psi, phi)
        first, bias = (phi, own_bias) if self.config.personal_form == "phi" else (psi, shared_bias)

        def both(x: Tensor) -> Tensor:
            return personal_logits(model.features(x), first, aligned, present, bias, shared_bias)

        return {"model": Predictor(both), "phi": Predictor(alone), **found}


def _headed(model: Model, weight_CD: Tensor, bias_C: Tensor | None) -> Predict:
    """Return a model's trunk under another head."""
    return lambda x: F.linear(model.features(x), weight_CD, bias_C)


def _bias(head: nn.Linear) -> Tensor | None:
    return None if head.bias is None else head.bias.detach()


def _remembered(client: ClientContext) -> dict[str, Tree]:
    return dict(client.memory.trees) if client.memory else {}

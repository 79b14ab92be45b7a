"""CCVR: classifier calibration with virtual representations.

Luo, Chen, Hu, Zhang, Liang, Feng. "No Fear of Heterogeneity: Classifier Calibration for Federated Learning with Non-IID
Data", NeurIPS 2021, arXiv:2106.05001, algorithm 1.

| paper | here | meaning |
|---|---|---|
| f_theta, g_phi | the base's model, without its head; its head | feature extractor and classifier, when trained |
| N_{c,k}, mu_{c,k}, Sigma_{c,k} | `describe` | a client's count, mean and covariance of the features of class c |
| mu_c, Sigma_c | `fold_statistics`, `unbiased` (equations 3 and 4) | those of all clients' features together, exactly |
| M_c | `Config.num_virtual` | virtual features of each class |
| G_c | `draw` | draws from N(mu_c, Sigma_c) |

    training    the base's (`strategy.base`), which knows nothing of this
    at the end  everyone sends N, mu, Sigma of its features under the model as trained; the server pools them
                draws M_c features of each class from N(mu_c, Sigma_c)
                phi <- SGD of cross-entropy on the draws, from phi as trained; theta stays

So the classifier, in which label skew shows most, is trained as if the features of all clients lay in one place, and
equally many of each class. Replies of clients are merged as biased moments; Sigma_c divides by N_c - 1, as the paper
does. A class without an example has no draws, one with a single example draws that example.

With `every` the head is calibrated in more rounds than the last, for the evaluation: the base goes on from its own.

Legend: N examples, D features, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor, nn

from umbel.core import moments
from umbel.core.collecting import Moments
from umbel.core.folds import Folded, Product, product
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.training import LocalConfig, train
from umbel.data.federation import Federation
from umbel.strategies.base import ClientContext, Phase, Predictor, ServerContext, Setting, Strategy, by_name, over
from umbel.strategies.bases import make_base, refused
from umbel.strategies.ggeur.completion import sample
from umbel.strategies.ggeur.pooling import ClassStatistics, class_statistics, statistics_tree
from umbel.strategies.ggeur.shapes import geometry
from umbel.strategies.neural_collapse import features_of
from umbel.strategies.phase import one_pass
from umbel.strategies.setting import refuse_norm_of_own


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of CCVR.

    Attributes:
        base: The strategy that trains; its model has to be one for all.
        base_options: Its hyper-parameters.
        num_virtual: M_c, virtual features of each class.
        epochs: Passes over them; 0 leaves the head as it is.
        batch_size: Virtual features in a batch; 0 takes all at once.
        lr: Learning rate on them.
        momentum: Momentum of that SGD.
        weight_decay: L2 penalty of the head meanwhile.
        every: Calibrate after every so many rounds, and after the last; 0 after the last alone, as the paper does.
    """

    base: str = "fedavg"
    base_options: dict[str, Any] = field(default_factory=dict)
    num_virtual: Annotated[int, Ge(1)] = 100
    epochs: Annotated[int, Ge(0)] = 10
    batch_size: Annotated[int, Ge(0)] = 64
    lr: Annotated[float, Gt(0)] = 0.01
    momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Ge(0)] = 0.0
    every: Annotated[int, Ge(0)] = 0


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        base: The base strategy's State.
        num_rounds: Rounds of the run.
        round: Rounds so far.
        head: The calibrated head of the base's model as it is now: `head.weight` [C, D], and `head.bias` [C] where
            there is one; empty where it was not calibrated since the model changed.
    """

    base: Any
    num_rounds: int
    round: int = 0
    head: dict[str, Tensor] = field(default_factory=dict)


def unbiased(statistics: ClassStatistics) -> ClassStatistics:
    """Return statistics whose covariances are divided by N_c - 1, where biased ones are divided by N_c.

    That of a single example stays 0.
    """
    count = statistics.count_C
    factor = torch.where(count > 1, count / (count - 1).clamp_min(1), torch.ones_like(count))
    return replace(statistics, covariance_CDD=statistics.covariance_CDD * factor[:, None, None])


def draw(statistics: ClassStatistics, num: int, source: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return `num` draws from N(mu_c, Sigma_c) of each class that has examples, [M, D], and their classes [M].

    Args:
        statistics: Of all clients, in the form of `unbiased`.
        num: M_c.
        source: Of the normal numbers.
    """
    shape = geometry(statistics)
    present = (statistics.count_C > 0).nonzero().flatten()
    drawn = [sample(shape, label, statistics.mean_CD[label][None], num, source) for label in present.tolist()]
    return torch.cat(drawn), present.repeat_interleave(num)


def calibrate(
    head: nn.Linear,
    features_MD: Tensor,
    labels_M: Tensor,
    config: Config,
    batches: torch.Generator,
    noise: torch.Generator,
) -> None:
    """Train a head in place on virtual features.

    Args:
        head: phi as trained.
        features_MD: Virtual features, of the head's dtype and on its device.
        labels_M: Their classes.
        config: Epochs, batch size, learning rate, momentum, weight decay.
        batches: Order of the features.
        noise: Not drawn from, for a head has no noise.
    """
    if not config.epochs:
        return
    precision = "fp64" if head.weight.dtype == torch.float64 else "fp32"
    local = LocalConfig(
        epochs=config.epochs,
        batch_size=config.batch_size,
        lr=config.lr,
        momentum=config.momentum,
        weight_decay=config.weight_decay,
        precision=precision,
    )
    train(head, features_MD, labels_M, local, batches=batches, noise=noise)


class CCVR(Strategy[State]):
    """Another strategy, whose classifier is trained anew at the end on draws from the Gaussians of all features."""

    config_class = Config
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        does = "CCVR calibrates the head of one model that all share"
        self.base: Strategy[Any] = make_base(config.base, config.base_options, CCVR, does)
        kind = type(self.base)
        if any(
            getattr(kind, name) is not getattr(Strategy, name)
            for name in ("personal", "predictors", "evaluated", "finish")
        ):
            raise refused(
                config.base,
                f" predicts by more than the model that it shares, and {does}",
                "Choose another, such as fedavg.",
            )
        by_name(self.every_phase(), "strategy.base")  # refuses a base with a phase called like that of this

    @property
    def plans_rounds(self) -> bool:
        return self.config.every != 1 or self.base.plans_rounds

    def check(self, setting: Setting) -> None:
        if setting.schedule.is_sequence or setting.data.heads == "per_task":
            raise Refusal(
                "strategy.name=ccvr calibrates one head on the features of all classes, and in a sequence of tasks "
                "clients have those of the current task.",
                key="data.rounds_per_task" if setting.schedule.is_sequence else "data.heads",
                remedy="Set data.rounds_per_task=0 and data.heads=shared.",
            )
        refuse_norm_of_own(
            setting,
            "ccvr",
            "calibrates one head on the features of all clients, and with model.norm=local each "
            "has features of its own",
        )
        ends = {"until": setting.run.until, "patience": setting.run.patience, "budget": setting.run.budget}
        for key, value in ends.items():
            if value and self.config.every != 1:
                raise Refusal(
                    f"strategy.name=ccvr calibrates after the last round, and run.{key}={value} may end the run "
                    "before.",
                    key=f"run.{key}",
                    remedy=f"Leave out run.{key}, or set strategy.every=1.",
                )
        self.base.check(setting)

    def check_data(self, federation: Federation) -> None:
        self.base.check_data(federation)

    def initial(self, server: ServerContext) -> State:
        return State(self.base.initial(server), server.num_rounds)

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (*map(self._of_base, self.base.every_phase()), self._statistics())

    def phases(self, state: State) -> tuple[Phase[State], ...]:
        *earlier, last = self.base.phases(state.base)
        of_base = (*map(self._of_base, earlier), self._of_base(last, ends=True))
        return (*of_base, self._statistics()) if self._is_due(state) else of_base

    def _is_due(self, state: State) -> bool:
        """Say whether the round that begins with a State ends with a calibration."""
        now, every = state.round + 1, self.config.every
        return now == state.num_rounds or (every > 0 and now % every == 0)

    def _of_base(self, phase: Phase[Any], ends: bool = False) -> Phase[State]:
        """Return a phase of the base, after which no head is calibrated; it may end its part of a round."""
        return over(
            phase,
            get=lambda state: state.base,
            put=lambda state, base: replace(state, base=base, round=state.round + ends, head={}),
        )

    def _statistics(self) -> Phase[State]:
        """Return the phase in which everyone's statistics become a calibrated head."""
        return Phase(
            "statistics",
            self.send,
            self.describe,
            self.fold_statistics,
            self.after_statistics,
            "everyone",
            num_processed=one_pass,
        )

    def send(self, state: State, server: ServerContext) -> Payload:
        model = self.base.model(state.base)
        num_classes, width = model["head.weight"].shape
        return Payload({"model": model}, {"classes": float(num_classes), "width": float(width)})

    def describe(self, payload: Payload, client: ClientContext) -> Reply:
        model = client.model(payload.trees["model"])
        statistics = class_statistics(*features_of(model, client), client.num_classes)
        tree = statistics_tree(statistics, 1, payload.trees["model"]["head.weight"].dtype)
        return Reply({"statistics": tree}, {}, client.num_examples)

    def fold_statistics(self) -> Product:
        return product({"statistics": Moments(bounds=lambda p: (int(p.numbers["classes"]), int(p.numbers["width"])))})

    def after_statistics(self, state: State, folded: Folded, server: ServerContext) -> State:
        model = server.model(self.base.model(state.base))
        pooled = pooled_statistics(folded, *model.head.weight.shape)
        features, labels = draw(unbiased(pooled), self.config.num_virtual, server.rng("virtual features"))
        head = model.head
        calibrate(
            head,
            features.to(head.weight),
            labels.to(server.device),
            self.config,
            server.rng("calibration batches"),
            server.rng("calibration noise"),
        )
        kept = {f"head.{name}": tensor.detach().cpu().clone() for name, tensor in head.state_dict().items()}
        return replace(state, head=kept)

    def model(self, state: State) -> dict[str, Tensor]:
        """Return the base's model, under the calibrated head where there is one."""
        return self.base.model(state.base) | state.head

    def representations(self, state: State) -> dict[str, Tensor]:
        return self.base.representations(state.base)

    def predictors(self, state: State, server: ServerContext) -> Mapping[str, Predictor]:
        """Evaluate the model, and where its head is calibrated, beside it the one that the base trained."""
        found = super().predictors(state, server)
        return {**found, "base": Predictor(server.model(self.base.model(state.base)))} if state.head else found


def pooled_statistics(folded: Folded, num_classes: int, width: int) -> ClassStatistics:
    """Return the pooled statistics of all classes, biased, in float64; those without examples are zero."""
    packed = torch.zeros(num_classes, moments.packed_size(width), dtype=torch.float64)
    for label, row in folded.trees["statistics"].items():
        packed[int(label)] = row
    return ClassStatistics(*moments.unpack(packed))

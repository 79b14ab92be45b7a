"""What methods have in common whose clients have models of any kind and share a public set: parties.

A party's model is of the architecture that is its turn, begins apart from all others, and stays in the client's memory
as the tree `party`. The server's model, the experiment's, learns from the public set as a party without private data.

Legend: M public examples, C classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from umbel.core import training
from umbel.core.device import parameter_dtype
from umbel.core.losses import CrossEntropy
from umbel.core.records import Payload
from umbel.core.refusal import Refusal
from umbel.core.rng import build_seeded
from umbel.core.training import LocalConfig, Objective
from umbel.data.federation import Federation
from umbel.data.types import Examples
from umbel.models import registry
from umbel.models.base import Model
from umbel.strategies.base import ClientContext, S, ServerContext, Setting, Strategy
from umbel.strategies.creamfl.public import fingerprint
from umbel.strategies.setting import refuse_collapse_of_own_parts

_BATCH = 256


def check_setting(setting: Setting, strategy: str) -> None:
    """Refuse an experiment without public examples, or under which parties cannot say what they think of all classes.

    Args:
        setting: The experiment.
        strategy: The strategy's name, for the message.

    Raises:
        Refusal: It is one.
    """
    wrong = [
        (not setting.data.public, "data.public", "needs public examples, and there are none", "data.public=0.1"),
        (
            setting.data.rounds_per_task > 0,
            "data.rounds_per_task",
            "distils what parties say of all classes, and a sequence hides those of other tasks",
            "data.rounds_per_task=0",
        ),
        (
            setting.data.heads == "per_task",
            "data.heads",
            "distils what parties say of all classes, and heads of tasks hide those of others",
            "data.heads=shared",
        ),
        (
            setting.model.norm == "local",
            "model.norm",
            "shares no model of which a part could stay with a client",
            "model.norm to another rule",
        ),
    ]
    for is_so, key, why, instead in wrong:
        if is_so:
            raise Refusal(f"strategy.name={strategy} {why}.", key=key, remedy=f"Set {instead}.")
    refuse_collapse_of_own_parts(setting, strategy)


def check_images(federation: Federation, strategy: str) -> None:
    """Refuse data without images."""
    if not federation.public.images.shape[1]:
        raise Refusal(
            f"strategy.name={strategy} classifies images, and these data have none.",
            key="data.name",
            remedy="Choose a set that has images.",
        )


def public_of(context: ServerContext | ClientContext) -> Examples:
    """Return the public examples; refuse without any."""
    if context.public is None:
        raise Refusal(
            "The strategy needs public examples, and there are none.", key="data.public", remedy="Set data.public."
        )
    return context.public


def check_public(payload: Payload, client: ClientContext) -> Examples:
    """Return the client's public examples; raise ValueError unless they are those of the payload's number `public`."""
    public = public_of(client)
    if payload.numbers["public"] != fingerprint(public):
        raise ValueError("This client has another public set than the server: data.public must be the same set.")
    return public


def rows_of(num_public: int, asked: int, source: torch.Generator) -> Tensor:
    """Return the public examples of a round, ascending, int64 [M]; `asked` of them, all with 0."""
    if not 0 < asked < num_public:
        return torch.arange(num_public)
    return torch.randperm(num_public, generator=source)[:asked].sort().values


def scores_of(model: Model, images: Tensor) -> Tensor:
    """Return the class scores [M, C] of images, float32 on the CPU."""
    model.eval()
    with torch.no_grad():
        return torch.cat([model(batch).float().cpu() for batch in torch.split(images, _BATCH)])


@dataclass(frozen=True)
class Architectures:
    """Which architectures parties have, by turns: client k has number k modulo their number.

    Attributes:
        models: Names of models.
        sizes: Sizes of a model, by its name.

    Raises:
        Refusal: Sizes of a model that no party has, or that are no mapping.
        UnknownNameError: A model or a size is not known.
    """

    models: Sequence[str]
    sizes: Mapping[str, Any]

    def __post_init__(self) -> None:
        """Refuse what cannot be, as far as that shows before there are data."""
        for name in self.sizes:
            if name not in self.models:
                raise Refusal(
                    f"strategy.sizes has sizes of {name!r}, and no party has such a model.",
                    key=f"strategy.sizes.{name}",
                    remedy=f"Name one of {', '.join(self.models)}, or put it into strategy.models.",
                )
        for name in self.models:
            if not isinstance(self.sizes.get(name, {}), Mapping):
                raise Refusal(
                    f"strategy.sizes.{name} should be a mapping, found {self.sizes[name]!r}.",
                    key=f"strategy.sizes.{name}",
                    remedy="Write the sizes as {hidden: 32}.",
                )
            registry.check(name, self.sizes.get(name, {}))

    def turn(self, client: int) -> int:
        """Return the number of a client's architecture."""
        return client % len(self.models)

    def build(self, name: str, like: Examples, num_classes: int) -> Model:
        """Return a model for examples such as these, from torch's global generator."""
        size = like.images.shape[-1] if like.images.ndim == 4 else 1
        return registry.build(name, num_classes, size, like.images.shape[1], **self.sizes.get(name, {}))

    def fresh(self, name: str, context: ServerContext | ClientContext, num_classes: int, client: int) -> Model:
        """Return a client's model as it begins, on the CPU."""
        public, dtype = public_of(context), parameter_dtype(context.local.precision)
        return build_seeded(lambda: self.build(name, public, num_classes), context.seed, dtype, client, "party")

    def try_all(self, server: ServerContext) -> None:
        """Build each architecture and show it two public examples: what fails, fails before anything starts."""
        num_classes, public = len(server.build_model().head.weight), public_of(server)
        images = server.prepare(public.take(torch.arange(min(2, len(public)))))[0]
        for name in dict.fromkeys(self.models):
            scores_of(self.fresh(name, server, num_classes, 0).to(server.device), images)

    def remembered(self, client: ClientContext) -> Model:
        """Return a party's model, as the client remembers it or as it begins, on the client's device."""
        model = self.fresh(self.models[self.turn(client.id)], client, client.num_classes, client.id)
        if client.memory is not None and "party" in client.memory.trees:
            model.load_state_dict(dict(client.memory.trees["party"]))
        return model.to(client.device)


class OfParties(Strategy[S]):
    """A strategy whose clients are parties: its configuration has their architectures as `models` and `sizes`."""

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.parties = Architectures(config.models, config.sizes)

    def check(self, setting: Setting) -> None:
        check_setting(setting, type(self).__name__.lower())

    def check_data(self, federation: Federation) -> None:
        check_images(federation, type(self).__name__.lower())


def train(
    client: ClientContext,
    what: str,
    model: Model,
    examples: Examples,
    epochs: int | None = None,
    objective: Objective | None = None,
) -> float:
    """Train a party's model on examples, by their labels without an objective; return the mean loss.

    With an objective of any kind, since the parties' models are not alike and cannot train together.

    Args:
        client: The client.
        what: Sets apart the random numbers of trainings of one phase.
        model: Trained in place.
        examples: What it is trained on.
        epochs: Passes over them; None trains as the section `client` says.
        objective: Mean loss [] of (model, images [B, ...], labels [B]).
    """
    if epochs == 0:
        return 0.0
    seen = replace(client, local=_epochs(client.local, epochs), phase=f"{client.phase}/{what}").with_data(examples)
    if objective is None:
        loss = seen.training_loss()
        return seen.train(model, objective=lambda model, x, y: loss(model(x), y)).loss
    return seen.train(model, objective=objective).loss


def train_on_numbers(
    client: ClientContext, what: str, model: Model, images: Tensor, epochs: int, objective: Objective
) -> float:
    """Train a party's model on prepared images, whose labels are their numbers; return the mean loss.

    They are taken as they are, not varied, whatever data.augment says: what others said of them is of these.
    """
    numbers = torch.arange(len(images), device=client.device)
    plain = replace(client, prepare=lambda examples: (images, numbers), augment=None)
    return train(plain, what, model, public_of(client), epochs, objective)


def learn(
    server: ServerContext,
    what: str,
    model: Model,
    images: Tensor,
    labels: Tensor,
    epochs: int,
    objective: Objective | None = None,
) -> None:
    """Train the server's model in place, by the loss of the section `client` without an objective."""
    if epochs == 0:
        return
    local, batches, noise = _epochs(server.local, epochs), server.rng(what), server.rng(f"{what} noise")
    loss = CrossEntropy(local.label_smoothing, local.class_weights)
    training.train(
        model,
        images,
        labels,
        local,
        batches=batches,
        noise=noise,
        round_=server.round,
        loss=loss if objective else loss.of(labels, len(model.head.weight)),
        objective=objective,
    )


def state_of(model: nn.Module) -> dict[str, Tensor]:
    """Return a copy of a model's whole state, on the CPU."""
    return {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()}


def _epochs(local: LocalConfig, epochs: int | None) -> LocalConfig:
    return local if epochs is None else replace(local, epochs=epochs, max_steps=0)

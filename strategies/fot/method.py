"""FOT: federated orthogonal training, against forgetting in a sequence of tasks.

Bakman, Yaldiz, Ezzeldin, Avestimehr. ICLR 2024, arXiv:2309.01289.

| paper | here | meaning |
|---|---|---|
| W | `State.model` | global model |
| U_l | `State.bases[name]`, payload tree `bases` | orthonormal directions that layer l must not move along |
| A_l | `umbel.models.inputs` | inputs of layer l, a column a sample or a patch |
| R | | A - U U' A, what the basis does not explain |
| Omega, Y | `residual_sketch`, tree `sketch` | random matrix of a client, sketch R Omega |
| rho | tree `energy` | share of the inputs that the basis does not explain |
| epsilon | `Config.threshold`, `Config.increment` | share of the energy to protect, and what each task adds to it |

    every round              W <- W + Delta (I - U U'), Delta the mean change of the clients, after the server's step
    last round of a task     the round's clients sketch the inputs of each layer on their data; the sum of the sketches
                             gives the directions that the task uses, which are added to U

A layer whose update is orthogonal to its old inputs says the same to them as before. That holds for the layer as a
whole when its bias moves along: inputs are [a; 1] and the projected update is [Delta W | Delta b]
(`bias=augment`; `free` is the paper). What is no layer (normalisation, position embeddings, buffers) would leak
likewise: after the first task it stays as it is (`rest=freeze`; `free` is the paper).

Where the authors' code differs: it sketches the clients' local models rather than the global one (`sketched=local`);
its energy criterion takes rho where the energy has rho^2, so that it keeps more directions (`ratio_power=1`), and at
least one (`min_directions=1`). For the MLP it draws Omega uniformly from [-1, 1], here it is always normal.

The paper's Omega is a client's secret. Here it comes from the run's seed, so that a run can be repeated to the bit; the
server knows that seed, can draw the same Omega and, where N <= M, solve Y = R Omega for R: without a basis, the inputs
themselves. `secret_omega=true` draws it from the operating system. Either way Y says about M R R'.

Legend: D inputs of a layer, N columns, M sketch columns, R basis directions, G groups of a convolution.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Interval
from torch import Tensor

from umbel.core.folds import Folded, Product, Sum, WeightedMean, product
from umbel.core.ranges import OneOf
from umbel.core.records import Payload, Reply
from umbel.core.refusal import Refusal
from umbel.core.tree import Tree, subtract
from umbel.models import operators
from umbel.models.base import Model
from umbel.models.inputs import layer_inputs, stream_inputs
from umbel.models.weights import load_state
from umbel.strategies.base import (
    ClientContext,
    Phase,
    ServerContext,
    Setting,
    Strategy,
    initial_model,
    server_step,
    train_and_subtract,
)
from umbel.strategies.fedavg import WEIGHTINGS, mean_fold
from umbel.strategies.fot.layers import bias_name, grow, layers_of, project_layer, shapes
from umbel.strategies.fot.subspace import Sketches
from umbel.strategies.phase import one_pass

_BATCH = 256


@dataclass(frozen=True)
class Config:
    """Hyper-parameters of FOT.

    Attributes:
        threshold: epsilon, share of the energy of each layer's inputs to protect after the first task.
        increment: Added to epsilon after each task.
        width: Columns M of a sketch, as a multiple of D; 0 sends the Gram matrix R R' (D x D), which is exact.
        residual: Who takes away what U explains: `client`, which gets the bases for it, as in the paper; `server`,
            which then sends no bases and estimates rho from the sketch (exact with `width=0`).
        sketched: `global`: the new global model's inputs, in an exchange of their own; `local`: those of each client's
            own model, with its update, as the authors do.
        ratio_power: 2 or 1, see `expand_basis`.
        min_directions: See `expand_basis`.
        bias: `augment`, `freeze` after the first task, or `free`.
        rest: What has no layer inputs: `freeze` after the first task, or `free`.
        skip: Layers that are never projected, as beginnings of names, such as `head`. Heads of single tasks are
            never projected.
        project: Without it, FOT is FedAvg.
        weighting: `uniform` as in the paper, or `examples`.
        server_lr: Learning rate of the server's step, before the projection.
        server_momentum: Momentum of the server's step; its sum is projected, so that nothing of it moves along U.
        sample_limit: Training examples that a client sketches at most, its first ones; 0 takes all.
        secret_omega: Draw Omega from the operating system rather than from the run's seed, which the server knows and
            can rebuild a client's inputs by, where they are no more than M. Two runs then differ in their bits.
    """

    threshold: Annotated[float, Interval(gt=0, le=1)] = 0.95
    increment: Annotated[float, Ge(0)] = 0.0
    width: Annotated[float, Ge(0)] = 1.0
    residual: Annotated[str, OneOf("client", "server")] = "client"
    sketched: Annotated[str, OneOf("global", "local")] = "global"
    ratio_power: Annotated[int, OneOf(1, 2)] = 2
    min_directions: Annotated[int, Ge(0)] = 0
    bias: Annotated[str, OneOf("augment", "freeze", "free")] = "augment"
    rest: Annotated[str, OneOf("freeze", "free")] = "freeze"
    skip: tuple[str, ...] = ()
    project: bool = True
    weighting: Annotated[str, OneOf(*WEIGHTINGS)] = "uniform"
    server_lr: Annotated[float, Gt(0)] = 1.0
    server_momentum: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    sample_limit: Annotated[int, Ge(0)] = 0
    secret_omega: bool = False


@dataclass(frozen=True)
class State:
    """What the server keeps.

    Attributes:
        model: W, the global model's shared state.
        layers: Groups and inputs (with the row of ones, where there is one) of each projected layer, by its weight.
        bases: U of each projected layer, [D, R] or [G, D, R], float32.
        tasks_done: Tasks whose directions are in the bases.
        sketch_next: The next round is the last of a task that another follows.
        velocity: Sum of past changes under server momentum, not projected, float64; empty without.
    """

    model: dict[str, Tensor]
    layers: dict[str, tuple[int, int]]
    bases: dict[str, Tensor]
    tasks_done: int
    sketch_next: bool
    velocity: dict[str, Tensor]


class FOT(Strategy[State]):
    """FedAvg whose updates leave alone what earlier tasks use."""

    config_class = Config
    config: Config

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        if config.secret_omega and not config.width:
            raise Refusal(
                "strategy.secret_omega=true keeps Omega from the server, and strategy.width=0 sends Gram matrices, "
                "which no Omega hides.",
                key="strategy.secret_omega",
                remedy="Set strategy.secret_omega=false, or strategy.width above 0.",
            )

    def check(self, setting: Setting) -> None:
        computed = [name for name in setting.model.operators if not operators.is_watched(name)]
        if computed:
            key = f"model.operators.{computed[0]}"
            raise Refusal(
                f"strategy.name=fot projects changes of the weights that it sees convolve, and {key} convolves with "
                "kernels that are computed from its weights: after the first task these would stand still, or forget "
                "(strategy.rest).",
                key=key,
                remedy="Leave it out, or choose another strategy.",
            )

    def initial(self, server: ServerContext) -> State:
        model = initial_model(server)
        still = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in model.items()}
        velocity = still if self.config.server_momentum else {}
        return State(model, self._layers(server), {}, 0, self._sketches(server, 1), velocity)

    def _layers(self, server: ServerContext) -> dict[str, tuple[int, int]]:
        """Find the layers to project by showing the model empty images."""
        model = server.build_model()
        names = {name for name, _ in model.named_parameters()}
        side, dtype = model.image_size, model.head.weight.dtype
        empty = torch.zeros(2, model.in_channels, side, side, dtype=dtype)  # two: of one, a norm may have no variance
        layers = {}
        for name, columns in layer_inputs(model, empty).items():
            if name.startswith(self.config.skip) or (server.task_of_class is not None and name.startswith("head.")):
                continue
            ones = self.config.bias == "augment" and bias_name(name) in names - {name}
            layers[name] = (columns.shape[0] if columns.ndim == 3 else 1, columns.shape[-2] + ones)
        return layers

    def _sketches(self, server: ServerContext, round_: int) -> bool:
        """Say whether a round is the last of a task that another follows."""
        return self.config.project and server.schedule.hands_over(round_)

    def every_phase(self) -> tuple[Phase[State], ...]:
        return (
            Phase("train", self.send_model, train_and_subtract, self.fold_deltas, self.after_train),
            Phase(
                "sketch",
                self.send_bases,
                self.sketch,
                self.fold_sketches,
                self.after_sketch,
                who="same:train",
                measured=self.held,
                num_processed=one_pass,
            ),
            Phase(
                "train_and_sketch", self.send_bases, self.do_both, self.fold_both, self.after_both, measured=self.held
            ),
        )

    def phases(self, state: State) -> tuple[Phase[State], ...]:
        train, sketch, train_and_sketch = self.every_phase()
        if not state.sketch_next:
            return (train,)
        return (train_and_sketch,) if self.config.sketched == "local" else (train, sketch)

    # ---- train: as FedAvg, then a step that leaves the bases alone -------------------------------------------

    def fold_deltas(self) -> Product:
        return product({"delta": mean_fold(self.config.weighting, "model")}, numbers=["loss"])

    def after_train(self, state: State, folded: Folded, server: ServerContext) -> State:
        state = self._step(state, folded.trees["delta"], server)
        return state if state.sketch_next else self._looked_ahead(state, server)  # else a sketch ends the round

    def _step(self, state: State, delta: Tree, server: ServerContext) -> State:
        """Return the State after the server's step, projected."""
        velocity = state.velocity
        if velocity:
            beta = self.config.server_momentum
            delta = velocity = {name: beta * velocity[name] + change.double() for name, change in delta.items()}
        if not state.tasks_done or not self.config.project:
            model = server_step(state.model, delta, self.config.server_lr)
        else:
            model = server_step(state.model, self._projected(state, delta, server))
        return replace(state, model=model, velocity=velocity)

    def _projected(self, state: State, delta: Tree, server: ServerContext) -> dict[str, Tensor]:
        """Return the step of every tensor, as far as it may move."""
        scaled = {name: self.config.server_lr * change.to(torch.float64) for name, change in delta.items()}
        projected = {} if self.config.rest == "freeze" else dict(scaled)
        for name, basis in state.bases.items():
            bias = scaled.get(bias_name(name)) if self.config.bias == "augment" else None
            projected[name], projected_bias = project_layer(scaled[name], bias, basis)
            if projected_bias is not None:
                projected[bias_name(name)] = projected_bias
            elif self.config.bias == "free" and bias_name(name) in scaled:
                projected[bias_name(name)] = scaled[bias_name(name)]
            elif self.config.bias == "freeze":
                projected.pop(bias_name(name), None)
        projected |= {n: c for n, c in scaled.items() if self.config.skip and n.startswith(self.config.skip)}
        if server.task_of_class is not None:
            own = server.task_of_class == server.task  # rows that other tasks do not use
            heads = {name: change for name, change in scaled.items() if name.startswith("head.")}
            projected |= {name: change * own.view(-1, *[1] * (change.ndim - 1)) for name, change in heads.items()}
        return {name: projected.get(name, torch.zeros_like(change)) for name, change in scaled.items()}

    # ---- sketch: what the task uses ---------------------------------------------------------------------------

    def send_bases(self, state: State, server: ServerContext) -> Payload:
        numbers = {f"groups/{name}": float(groups) for name, (groups, _) in state.layers.items()}
        numbers |= {f"inputs/{name}": float(inputs) for name, (_, inputs) in state.layers.items()}
        bases = {} if self.config.residual == "server" else state.bases
        return Payload({"model": state.model, "bases": bases}, numbers)

    def sketch(self, payload: Payload, client: ClientContext) -> Reply:
        return Reply(self._sketched(client.model(payload.trees["model"]), payload, client), {}, client.num_examples)

    def _sketched(self, model: Model, payload: Payload, client: ClientContext) -> dict[str, Tree]:
        """Return what a client says of the inputs of a model's layers on its data."""
        images, _ = client.prepare(client.train_data)
        images = images[: self.config.sample_limit] if self.config.sample_limit else images
        rng = None if self.config.secret_omega else client.rng
        sketches = Sketches(payload.trees["bases"], layers_of(payload), self.config.width, rng)
        for batch in torch.split(images, _BATCH):
            stream_inputs(model, batch, sketches.take)
        ratio = {name: (e[..., 0] / e[..., 1].clamp_min(1e-300)).sqrt() for name, e in sketches.energy.items()}
        return {"sketch": sketches.sketch, "energy": sketches.energy, "ratio": ratio}

    def fold_sketches(self) -> Product:
        width = self.config.width
        return product(
            {
                "sketch": Sum(lambda payload: shapes(payload, lambda d: (d, math.ceil(width * d) or d))),
                "energy": Sum(lambda payload: shapes(payload, lambda d: (2,))),
                "ratio": WeightedMean(lambda payload: shapes(payload, lambda d: ())),
            }
        )

    def after_sketch(self, state: State, folded: Folded, server: ServerContext) -> State:
        return self._looked_ahead(self._protect(state, folded), server)

    def _protect(self, state: State, folded: Folded) -> State:
        """Add the directions that the task uses to the bases."""
        threshold = min(self.config.threshold + state.tasks_done * self.config.increment, 1.0)
        bases = dict(state.bases)
        for name, sketch in folded.trees["sketch"].items():
            energy = folded.trees["energy"][name]
            rho = (energy[..., 0] / energy[..., 1].clamp_min(1e-300)).sqrt()
            if self.config.ratio_power == 1:
                rho = folded.trees["ratio"][name]
            bases[name] = grow(bases.get(name), sketch, rho, self.config, threshold)
        return replace(state, bases=bases, tasks_done=state.tasks_done + 1)

    def _looked_ahead(self, state: State, server: ServerContext) -> State:
        """Return the State after the last phase of a round, which knows whether the next one ends a task."""
        return replace(state, sketch_next=self._sketches(server, server.round + 1))

    # ---- train_and_sketch: both at once, of the client's own model -------------------------------------------

    def do_both(self, payload: Payload, client: ClientContext) -> Reply:
        before = payload.trees["model"]
        model = client.model(before)
        report = client.train(model)
        delta = subtract(client.weights(model), before)
        # As the server will have it. In place: to load the model anew would bring back the client's own parts, too.
        load_state(model, {name: before[name] + change for name, change in delta.items()}, partial=True)
        trees = self._sketched(model, payload, client)
        return Reply({**trees, "delta": delta}, {"loss": report.loss}, client.num_examples)

    def fold_both(self) -> Product:
        return product({**self.fold_deltas().folds, **self.fold_sketches().folds}, numbers=["loss"])

    def after_both(self, state: State, folded: Folded, server: ServerContext) -> State:
        return self.after_sketch(self._step(state, folded.trees["delta"], server), folded, server)

    # ---- what is evaluated and reported ----------------------------------------------------------------------

    def model(self, state: State) -> dict[str, Tensor]:
        return state.model

    def held(self, state: State) -> dict[str, float]:
        """Return what the bases hold, after they have grown.

        `rank/<layer>`: directions, of all groups together; `columns/<layer>`: those of its longest group, which is what
        travels for each; `protected`: the share of the layers' weights that cannot move.
        """
        sizes, protected, whole = {}, 0.0, 0
        for name, (groups, inputs) in state.layers.items():
            basis = state.bases.get(name)
            rank = 0 if basis is None else int((basis.abs().sum(-2) > 0).sum())
            sizes[f"rank/{name}"] = float(rank)
            sizes[f"columns/{name}"] = 0.0 if basis is None else float(basis.shape[-1])
            outputs = state.model[name].shape[0]
            protected, whole = protected + rank * outputs / groups, whole + inputs * outputs
        return {**sizes, "protected": protected / max(whole, 1)}

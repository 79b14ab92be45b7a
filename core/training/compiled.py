"""Steps of training as compiled graphs: forward, backward, correction and optimiser in one.

A step is traced to a graph of tensor operations, which `torch.compile` makes into kernels, once a process for each
form: what the model, the loss and the correction are besides their numbers (`steps.py`), and the shapes. Graphs are
made for one shape each and never for shapes in general: which kernels a batch meets, and so its bits, does not depend
on the batches before it. What the compiler made is kept on disk (TORCHINDUCTOR_CACHE_DIR), for other processes and
runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Hashable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from umbel.core.names import shortened
from umbel.core.training.config import LocalConfig
from umbel.core.training.corrections import AffineCorrection, Correction
from umbel.core.training.fallbacks import OTHER_BITS, tell
from umbel.core.training.steps import (
    Loss,
    Step,
    UnfitError,
    form_of_loss,
    form_of_model,
    rates_of,
    state_of,
    tensors_of_loss,
)

Graph = Callable[..., Tensor]
# Of a step's length, by which a compiled one may differ: it adds up in another order.
_ROUNDED = {"fp64": 1e-6, "fp32": 5e-3, "bf16": 0.1, "fp16": 0.1}
_APART = 0.5  # likewise for parameters under Adam, whose quotients of small numbers may change their sign
_NOTHING = 1e-12  # length of a step that stands still
_RECURSION = 2000
_graphs: dict[Hashable, Graph | str] = {}  # or what there is to say of a step that could not be compiled


class Steps:
    """A model's steps; full batches go through a graph, others through the same arithmetic without one.

    Args:
        model: The model, in the mode in which it trains; its parameters and buffers are changed in place.
        config: How to train.
        lr: Learning rate of the round.
        correct: Correction of gradients, or None.
        loss: Mean loss of (logits [B, C], labels [B]).
        device: Where the model is.
        backend: Of `torch.compile`.

    Raises:
        UnfitError: They cannot be functions of tensors alone.
    """

    def __init__(
        self,
        model: nn.Module,
        config: LocalConfig,
        lr: float,
        correct: Correction | None,
        loss: Loss,
        device: torch.device,
        backend: str = "inductor",
    ) -> None:
        if correct is not None and not isinstance(correct, AffineCorrection):
            raise UnfitError("its gradients are corrected by a function that may read anything")
        self._step = Step(model, config, loss, correct)
        form = form_of(self._step)
        state, (trained, others) = state_of(model), self._step.names
        parameters = [state[name].detach() for name in trained]
        moments = [torch.zeros_like(parameter) for _ in self._step.kinds for parameter in parameters]
        reads = [] if correct is None else correct.tensors
        self._held = [*parameters, *(state[name].detach() for name in others), *moments, *reads, *tensors_of_loss(loss)]
        self._lr, self._num_steps, self._device = lr, 0, device
        self._graphs = Graphs(self._step, form, backend)

    def __call__(self, x: Tensor, y: Tensor) -> Tensor:
        """Do a step on a batch [B, ...] with labels [B]; return the loss before it."""
        self._num_steps += 1
        rates = rates_of(self._step.config, self._lr, self._num_steps, self._device)
        tensors = [*self._held, rates, x, y]
        graph = self._graphs.of(tensors) if self._is_full(y) else None
        with torch.no_grad():
            return self._step(*tensors) if graph is None else graph(*tensors)

    def _is_full(self, labels: Tensor) -> bool:
        return len(labels) == self._step.config.batch_size


class Graphs:
    """The graphs of a local run: of what they are called with only the batch changes its shape, and is looked at.

    Args:
        step: The step.
        form: From `form_of`.
        backend: Of `torch.compile`.
    """

    def __init__(self, step: Step, form: Hashable, backend: str = "inductor") -> None:
        self._step, self._form, self._backend = step, form, backend
        self._found: dict[Hashable, Graph | None] = {}

    def of(self, tensors: Sequence[Tensor]) -> Graph | None:
        """Return the graph for tensors like these, or None where there is none (`graph_of`)."""
        batch = _shapes(tensors[-2:])
        if batch not in self._found:
            self._found[batch] = graph_of(self._step, self._form, tensors, self._backend)
        return self._found[batch]


def form_of(step: Step) -> Hashable:
    """Return what a step is besides its tensors.

    Raises:
        UnfitError: It may depend on something else.
    """
    config, correction = step.config, step.correction
    numbers = (config.optimizer, config.momentum, config.nesterov, config.weight_decay, config.clip_norm)
    how = (*numbers, config.precision, step.num_models, None if correction is None else correction.form)
    return form_of_model(step.model), step.names[0], form_of_loss(step.loss), how


def graph_of(step: Step, form: Hashable, tensors: Sequence[Tensor], backend: str = "inductor") -> Graph | None:
    """Return a step as a graph for tensors like these; None where it cannot be one, which is told each time.

    Args:
        step: The step.
        form: From `form_of`.
        tensors: What it will be called with; they stay as they are.
        backend: Of `torch.compile`.
    """
    key = (form, backend, _shapes(tensors))
    if key not in _graphs:
        _graphs[key] = _compile(step, tensors, backend)
    made = _graphs[key]
    if isinstance(made, str):
        tell(made)
        return None
    return made


def _shapes(tensors: Sequence[Tensor]) -> Hashable:
    return tuple((t.shape, t.stride(), t.dtype, t.device) for t in tensors)


def _compile(step: Step, tensors: Sequence[Tensor], backend: str) -> Graph | str:
    """Return the graph, or why there is none; it has run once, on copies, so that what it can raise it has raised.

    That a step cannot be traced comes of the model, in all processes alike. What comes later (no compiler, a full disk)
    may be so in this process alone.
    """
    from torch.fx.experimental.proxy_tensor import make_fx  # a second of imports, for whoever compiles

    without = f"client.compile=step: {type(step.model).__name__} trains without"
    try:
        # Fake tensors refuse others: a graph cannot have taken a tensor for a constant that was none of its arguments.
        traced = make_fx(step.__call__, tracing_mode="fake")(*tensors)
    except Exception as error:  # noqa: BLE001 - whatever a compiler cannot do can be done without it
        return f"{without}, for it cannot be compiled ({_in_short(error)})."
    graph: Graph = torch.compile(traced, fullgraph=True, dynamic=False, backend=backend)
    cuda = [tensors[0].device] if tensors[0].device.type == "cuda" else []
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=cuda):
            _compare(step, graph, tensors)
    except Exception as error:  # noqa: BLE001 - likewise
        return f"{without} where it cannot be compiled ({_in_short(error)}); {OTHER_BITS}."
    return graph


def _in_short(error: Exception) -> str:
    """Return the first line of what a compiler says, and the next where that one only says whose words follow."""
    lines = str(error).strip().split("\n")
    return shortened(" ".join(lines[: 2 if lines[0].endswith(":") else 1]))


def _compare(step: Step, graph: Graph, tensors: Sequence[Tensor]) -> None:
    """Run a graph once beside the step that it was made of, on copies.

    A model that draws noise draws other noise in a graph, and there is nothing to compare.

    Raises:
        UnfitError: The graph does something else: a compiler is a large program.
    """
    drawn = torch.Generator().manual_seed(0)  # a batch of no client, so that all processes of a run decide alike
    x = tensors[-2]
    if x.is_floating_point():
        x = torch.empty_like(x).copy_(torch.randn(x.shape, generator=drawn))  # in the memory order of the batch
    given = [*tensors[:-2], x, tensors[-1]]

    def moved(act: Graph, seed: int) -> dict[str, Tensor]:
        torch.manual_seed(seed)
        copies = [tensor.clone() for tensor in given]
        before = {what: [tensor.clone() for tensor in each] for what, each in step.changed(copies).items()}
        losses = act(*copies)
        after = step.changed(copies)
        changes = {
            what: torch.cat([(b - a).flatten().double() for a, b in zip(each, after[what], strict=True)])
            for what, each in before.items()
        }
        return {"loss": losses.flatten().double(), **changes}

    expected, again, made = moved(step, 0), moved(step, 1), moved(graph, 0)
    if not all(torch.equal(expected[what], again[what]) for what in expected):
        return
    for what, change in expected.items():
        limit = _APART if what == "parameters" and step.kinds[:1] == ("exp_avg",) else _ROUNDED[step.config.precision]
        if not (made[what] - change).norm() <= limit * change.norm() + _NOTHING:
            share = float((made[what] - change).norm() / change.norm())
            raise UnfitError(f"the compiled step comes to other {what} than the step, by {share:.1%} of its length")


def keep_in(folder: Path) -> None:
    """Have what compilers make kept in a folder, unless the environment names one, and compile in this process.

    A compiler's own pool of processes would begin, and stay, in the turn of whichever client comes first.
    """
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(folder))
    os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
    # The compiler raises it to this in whoever's turn it is that needs it first.
    sys.setrecursionlimit(max(sys.getrecursionlimit(), _RECURSION))

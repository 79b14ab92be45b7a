"""How a client trains: the keys of the section `client`, and the learning rate of a round."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, Interval

from umbel.core import device as devices
from umbel.core.losses import CLASS_WEIGHTS
from umbel.core.ranges import OneOf, OrWord

OPTIMIZERS = ("sgd", "adam", "adamw")
SCHEDULES = ("exponential", "step", "cosine")
COMPILE = ("none", "model", "step")


@dataclass(frozen=True)
class LocalConfig:
    """How a client trains.

    Attributes:
        epochs: Passes over the client's training examples in a round (E); 0 goes on until `max_steps`.
        max_steps: Stop a round's training after so many steps; 0 sets no limit.
        batch_size: Examples in a batch (B); 0 takes all of the client's examples as one batch.
        optimizer: sgd, adam or adamw; made anew in every round, as the papers do.
        lr: Learning rate.
        lr_schedule: How the learning rate goes on from round to round (`learning_rate` has the formulas): exponential,
            step or cosine. It is constant where lr_decay is 1.
        lr_decay: Factor of a round (exponential) or of a step.
        lr_step: Rounds from one step to the next.
        lr_rounds: The round after which a cosine would be at 0; 0 takes `run.rounds`.
        lr_warmup: Rounds in which the learning rate rises in equal steps to `lr`; the schedule begins after them.
        momentum: Momentum of sgd.
        nesterov: Nesterov's form of it.
        weight_decay: L2 penalty (decoupled for adamw).
        clip_norm: Largest gradient norm; 0 does not clip.
        label_smoothing: Share of each label that is spread evenly over all classes.
        class_weights: none, or balanced: in a client's loss each of the classes that it has counts the same.
        device: auto, cpu, cuda or mps.
        precision: fp64, fp32, or bf16 / fp16 by autocast over float32 parameters.
        channels_last: Keep images and convolutions' weights in the memory order [B, H, W, C], in which convolutions are
            faster on a CPU and in low precision on a GPU: true or false; auto does so for models that have convolutions
            over many channels. Other bits than without.
        compile: none; model: compile the model by `torch.compile`; step: compile a whole step, forward, backward,
            correction and optimiser, for batches that are full. On a CPU this needs a C++ compiler and Python's
            headers. Each has bits of its own. false and true are none and model.
        together: Of so many consecutive clients of a cohort, those that have equally many examples train at once, by
            `torch.func.vmap`; 1: one after the other; auto: 8 where the server's process has a CUDA device, else 1.
            Other bits than one by one.
    """

    epochs: Annotated[int, Ge(0)] = 1
    max_steps: Annotated[int, Ge(0)] = 0
    batch_size: Annotated[int, Ge(0)] = 32
    optimizer: Annotated[str, OneOf(*OPTIMIZERS)] = "sgd"
    lr: Annotated[float, Ge(0)] = 0.05
    lr_schedule: Annotated[str, OneOf(*SCHEDULES)] = "exponential"
    lr_decay: Annotated[float, Ge(0)] = 1.0
    lr_step: Annotated[int, Ge(1)] = 1
    lr_rounds: Annotated[int, Ge(0)] = 0
    lr_warmup: Annotated[int, Ge(0)] = 0
    momentum: Annotated[float, Ge(0)] = 0.0
    nesterov: bool = False
    weight_decay: Annotated[float, Ge(0)] = 0.0
    clip_norm: Annotated[float, Ge(0)] = 0.0
    label_smoothing: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    class_weights: Annotated[str, OneOf(*CLASS_WEIGHTS)] = "none"
    device: str = "auto"
    precision: Annotated[str, OneOf(*devices.PRECISIONS)] = "fp32"
    channels_last: bool | Literal["auto"] = False
    compile: Annotated[str, OneOf(*COMPILE)] = "none"
    together: Annotated[int | Literal["auto"], Ge(1), OrWord("auto")] = 1

    def __post_init__(self) -> None:
        """Take a truth value of `compile` for what it once meant."""
        known = {"false": "none", "true": "model"}
        object.__setattr__(self, "compile", known.get(str(self.compile).lower(), self.compile))


def learning_rate(config: LocalConfig, round_: int) -> float:
    """Return the learning rate of a round.

    With W = lr_warmup it is lr r / W in the rounds r = 1 .. W. Then, with t = r - 1 - W: lr lr_decay^t (exponential),
    lr lr_decay^floor(t / lr_step) (step), or lr (1 + cos(pi t / (lr_rounds - W))) / 2 (cosine; Loshchilov and Hutter
    2017, without restarts), which is 0 from the round after lr_rounds on.

    Args:
        config: With `lr_rounds` above W for a cosine.
        round_: Round, from 1.
    """
    if round_ <= config.lr_warmup:
        return config.lr * round_ / config.lr_warmup
    after = max(round_ - 1 - config.lr_warmup, 0)
    if config.lr_schedule == "cosine":
        length = max(config.lr_rounds - config.lr_warmup, 1)
        return config.lr * (1 + math.cos(math.pi * min(after / length, 1))) / 2
    return float(config.lr * config.lr_decay ** (after // config.lr_step if config.lr_schedule == "step" else after))


def num_processed(config: LocalConfig, num_examples: int) -> int:
    """Return how many examples a local training goes through; one that comes in several epochs counts in each."""
    batch_size = config.batch_size or num_examples
    if not num_examples:
        return 0
    in_epoch = math.ceil(num_examples / batch_size)
    steps = config.epochs * in_epoch or config.max_steps
    epochs, rest = divmod(min(steps, config.max_steps or steps), in_epoch)
    return epochs * num_examples + rest * batch_size

"""The shape of an experiment: frozen dataclasses, one section each."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Interval

from umbel.core.ranges import OneOf, OrWord
from umbel.core.schedule import Schedule
from umbel.core.training import LocalConfig
from umbel.core.virtual.config import DevicesConfig
from umbel.data import partition
from umbel.data.config import DataConfig
from umbel.models.norm import GROUPS
from umbel.strategies import registry as strategies

_YEAR = 31_536_000  # in seconds; locks of the operating system take some hundred years, and none infinity


@dataclass(frozen=True)
class ModelConfig:
    """Which model.

    Attributes:
        name: A name of `umbel list models`, or `package.module:Factory`.
        norm: What happens to batch norm: `average` its statistics and affine parameters like all others, keep
            them `local` to each client (FedBN), or build the model with `group` or `layer` norm (one group) instead.
        checkpoint: Whether blocks compute their activations again in the backward pass in place of keeping them: less
            memory and more time, the same bits.
        sizes: Size keywords of the model, such as `width: 32`.
        operators: Operators of `umbel list operators` that are put into the model, each with its options, such as
            `{wconv: {density: [0.7]}}`; `layers` among them says which convolutions it takes the place of.
        init: Weights that the run starts from: the folder of a run that has ended, or a model's file. A classifier of
            other classes starts anew; all else has to fit. Empty starts from fresh weights.
        init_sha256: Hash that the weights of `init` should have; noted when a run starts.
    """

    name: str = "cnn"
    norm: Annotated[str, OneOf("average", "local", *GROUPS)] = "average"
    checkpoint: bool = False
    sizes: dict[str, Any] = field(default_factory=dict)
    operators: dict[str, Any] = field(default_factory=dict)
    init: str = ""
    init_sha256: str = ""


@dataclass(frozen=True)
class StrategyConfig:
    """Which strategy, and its hyper-parameters.

    Attributes:
        name: A name of `umbel list strategies`, `flwr:<class>` for one of Flower's own, or `package.module:Class`.
        options: Its hyper-parameters. In YAML and overrides they stand beside the name: `strategy.mu=0.1`.
    """

    name: str = strategies.DEFAULT
    options: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class RunConfig:
    """The federation's course.

    Attributes:
        rounds: Number of rounds.
        seed: Seed of everything random.
        participation: Fraction of the clients that a round selects, which is one client or more.
        clients_per_round: Number of clients that a round selects; 0 takes `participation`.
        sampling: How they are drawn, none twice: `uniform`, or by their numbers of training `examples`.
        dropout: Probability that a selected client drops out of a round, in all of its phases but the evaluation; as
            many stay as min_replies asks for.
        until: Ends the run after the round whose evaluation meets it, a metric of validation data and a bound, such as
            `validation/accuracy>=0.9`; empty never.
        patience: Ends the run when so many evaluations in a row had no better validation accuracy than one before
            them; 0 never.
        budget: Ends the run after the round that comes nearest to so many `steps` or `examples` of training, `flops`
            (floating-point operations of models), `bytes` of messages or `seconds`, such as `steps=2000`, as long as
            `rounds` allows; empty has none. Of a federation, steps, examples and flops are the nodes' word.
        min_replies: A phase with fewer good replies than this ends the run, with everything saved. A whole number is a
            number of replies; one with a point is a share of the clients that the phase selected, rounded up: 1 is one
            reply, 0.75 three quarters of them, 1.0 all of them.
        over_sample: Clients that a round asks beyond those that it takes: of all whom it asks it takes the first to
            finish in virtual time (`simulation.devices`).
        deadline: Virtual seconds that a phase waits; who would be later is not asked, but as many are waited for as
            min_replies asks for. 0 waits for all.
        threads: Threads of torch's arithmetic in every process; part of what fixes the bits.
        results: Folder in which runs are written.
        name: Name of the run's folder; empty makes one of experiment, strategy, seed and time.
        trackers: Where its numbers go as well: `tensorboard`, `mlflow`, `wandb`, or `package.module:function`
            that returns a `umbel.Tracker`. Their libraries are to be installed. They change no result.
    """

    rounds: Annotated[int, Ge(1)] = 10
    seed: int = 0
    participation: Annotated[float, Interval(gt=0, le=1)] = 1.0
    clients_per_round: Annotated[int, Ge(0)] = 0
    sampling: Annotated[str, OneOf("uniform", "examples")] = "uniform"
    dropout: Annotated[float, Interval(ge=0, lt=1)] = 0.0
    until: str = ""
    patience: Annotated[int, Ge(0)] = 0
    budget: str = ""
    min_replies: Annotated[int | float, Gt(0)] = 1
    over_sample: Annotated[int, Ge(0)] = 0
    deadline: Annotated[float, Ge(0)] = 0.0
    threads: Annotated[int, Interval(ge=1, le=1024)] = 1
    results: str = "results"
    name: str = ""
    trackers: list[str] = field(default_factory=list)

    def replies_needed(self, cohort: int) -> int:
        """Return how many good replies a phase needs that selected so many clients."""
        if isinstance(self.min_replies, int):
            return self.min_replies
        return math.ceil(Fraction(str(self.min_replies)) * cohort)  # as it was written: 0.07 of 100 are 7


@dataclass(frozen=True)
class EngineConfig:
    """Where clients run.

    Attributes:
        name: inline (one process), processes (several of this machine), ray (of one machine or many), or grpc.
        workers: Of processes and ray; 0 takes one for each CPU, or each share of a GPU; auto as many as a
            measurement says: those that memory holds, and that together train a tenth faster than half as many. Their
            number changes no result.
        gpus_per_worker: Share of a GPU for each worker, such as 0.25.
        ray_address: A running Ray cluster (`auto` finds it); empty starts Ray on this machine.
        nodes: SuperNodes to start for grpc when no federation is up.
        node_timeout_seconds: How long to wait for nodes that together hold every client.
        deadline_seconds: How long a phase waits for replies; those that are late are left out.
        client_seconds: How long one client may take in a phase; it then fails and the others go on, on every engine
            (inline, a call that never comes back from C is waited for).
        memory_bytes: Memory of each process, server or client, for partial sums that wait for their turn; beyond it
            they wait on disk, in the folder of temporary files. Sums are float64: of a model of a million parameters
            8 MB each, and as many wait as the clients of a round can be halved.
    """

    name: Annotated[str, OneOf("inline", "processes", "ray", "grpc")] = "inline"
    workers: Annotated[int | Literal["auto"], Interval(ge=0, le=4096), OrWord("auto")] = 0
    gpus_per_worker: Annotated[float, Interval(ge=0, le=1)] = 0.0
    ray_address: str = ""
    nodes: Annotated[int, Interval(ge=1, le=1024)] = 4
    node_timeout_seconds: Annotated[float, Interval(gt=0, le=_YEAR)] = 120.0
    deadline_seconds: Annotated[float, Interval(gt=0, le=_YEAR)] = 3600.0
    client_seconds: Annotated[float, Interval(gt=0, le=_YEAR)] = 1800.0
    memory_bytes: Annotated[int, Ge(0)] = 64 << 20


@dataclass(frozen=True)
class EvaluateConfig:
    """What is evaluated and when.

    Attributes:
        every: Evaluate after every so many rounds, and after the last; 0 never.
        server: Evaluate on the server's validation and test examples.
        clients: Clients that evaluate on their own data: -1 all, 0 none, else so many, drawn by the seed.
        batch_size: Examples at once.
        metrics: More than accuracies and losses: names such as f1, precision, recall, auroc, average_precision,
            calibration_error, kappa, matthews and top5, or `package.module:function` of (logits [N, C], labels [N]).
        collapse: Measure also how far features and head have collapsed to one direction a class (neural collapse), on
            the server's validation examples, or its test examples where it has none.
    """

    every: Annotated[int, Ge(0)] = 1
    server: bool = True
    clients: Annotated[int, Ge(-1)] = -1
    batch_size: Annotated[int, Ge(1)] = 512
    metrics: list[str] = field(default_factory=list)
    collapse: bool = False


@dataclass(frozen=True)
class CheckpointConfig:
    """When state is written.

    Attributes:
        every: Write a checkpoint after every so many rounds; 0 only when the run is stopped.
    """

    every: Annotated[int, Ge(0)] = 5


@dataclass(frozen=True)
class SimulationConfig:
    """What is simulated beside the training itself.

    Attributes:
        devices: The clients' devices: a run that has them reports virtual seconds.
    """

    devices: DevicesConfig = field(default_factory=DevicesConfig)


@dataclass(frozen=True)
class TuneConfig:
    """What `umbel tune` searches; the command line comes first, and a run takes no notice of it.

    Attributes:
        strategies: The contenders, as `umbel compare` takes them: `fedavg,fedprox,scaffold`; empty takes those of the
            file's block `compare`.
        space: The values that each key may have: `log:0.001..0.3`, `1..5`, or `choice:sgd,adam`. Keys are those of
            `client`, which all contenders have, `strategy.<option>` for all that know it, and `<contender>.<key>`.
        trials: Combinations of values that each contender is run with.
        seeds: Seeds that each of them is run with, a number or a list as of `umbel compare`; counted from run.seed +
            1000000.
        metric: What the choice goes by, a metric of validation data; empty takes the one that chooses a run's best
            round.
    """

    strategies: str = ""
    space: dict[str, str] = field(default_factory=dict)
    trials: Annotated[int, Ge(1)] = 20
    seeds: str = "1"
    metric: str = ""


@dataclass(frozen=True)
class Experiment:
    """A whole experiment.

    Attributes:
        name: Name of the experiment's file.
        description: One line, for `umbel list experiments`.
        data: Data set, partition, splits.
        model: Model.
        client: Local training.
        strategy: Strategy.
        run: Rounds, seed, participation, results.
        evaluate: Evaluation.
        checkpoint: Checkpoints.
        engine: Engine.
        simulation: Devices of different speeds, in virtual time.
        tune: The search of `umbel tune`.
    """

    name: str = ""
    description: str = ""
    data: DataConfig = field(default_factory=DataConfig)
    model: ModelConfig = field(default_factory=ModelConfig)
    client: LocalConfig = field(default_factory=LocalConfig)
    strategy: StrategyConfig = field(default_factory=StrategyConfig)
    run: RunConfig = field(default_factory=RunConfig)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    simulation: SimulationConfig = field(default_factory=SimulationConfig)
    tune: TuneConfig = field(default_factory=TuneConfig)

    @property
    def data_seed(self) -> int:
        """Seed of splits and partitions."""
        return self.run.seed if self.data.seed is None else self.data.seed

    @property
    def local(self) -> LocalConfig:
        """How clients train, with the rounds that their learning rate is planned for."""
        return replace(self.client, lr_rounds=self.client.lr_rounds or self.run.rounds)

    @property
    def schedule(self) -> Schedule:
        """When the sequence of tasks moves on."""
        tasks = self.data.num_tasks if partition.tasks(self.data.partition) != "none" else 1
        return Schedule(tasks, self.data.rounds_per_task)

    @property
    def num_sampled(self) -> int:
        """Clients that a `sample` phase selects."""
        asked = self.run.clients_per_round or round(self.run.participation * self.data.num_clients)
        return min(max(asked, 1), self.data.num_clients)

"""Replay: the reservoir, its bound, what a step is on, that it stays at home, and what it is without."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file

from tests.helpers import bits
from tests.strategies.continual.sequences import (
    LOCAL,
    TASK_OF_CLASS,
    client_of,
    images_of,
    model_bytes,
    network,
    sequence_run,
    server_of,
)
from umbel.conf.errors import ExperimentError
from umbel.conf.load import load
from umbel.core.folds import Folded
from umbel.core.memory import MemoryRecord
from umbel.core.records import Payload
from umbel.core.rng import generator
from umbel.core.spent import counted
from umbel.strategies.continual.replay import Config, Replay, draw, reservoir


def test_the_reservoir_is_algorithm_r():
    """Example n takes place floor(n u) where that is a place, with u the draws of the generator."""
    kept = reservoir(3, 2, 2, 6, generator(4))
    draws = torch.rand(6, generator=generator(4), dtype=torch.float64).tolist()
    expected = [0, 1]
    for n, u in enumerate(draws, 3):  # the third that is offered is number 2
        place = int(n * u)
        if len(expected) < 3:
            expected.append(n - 1)
        elif place < 3:
            expected[place] = n - 1
    assert kept.tolist() == expected and len(set(expected)) == 3


def test_all_that_was_ever_offered_is_kept_alike():
    """Of 4 + 6 + 2 examples, offered in three tasks, each is among 3 with probability 1/4: 4000 draws, 5 deviations."""
    times, counts = 4000, Counter()
    for seed in range(times):
        source, kept, seen = generator(seed), torch.arange(0), 0
        for new in (4, 6, 2):
            offered = torch.cat([kept, torch.arange(seen, seen + new)])
            kept = offered[reservoir(3, len(kept), seen, new, source)]
            seen += new
        counts.update(kept.tolist())
    assert sum(counts.values()) == 3 * times
    assert all(abs(counts[each] / times - 0.25) < 5 * (0.25 * 0.75 / times) ** 0.5 for each in range(12))


def test_a_draw_repeats_nothing_while_there_is_enough():
    assert sorted(draw(5, 5, generator(0)).tolist()) == [0, 1, 2, 3, 4]
    assert len(set(draw(9, 4, generator(0)).tolist())) == 4
    assert Counter(draw(3, 8, generator(1)).tolist()).most_common()[-1][1] == 2


def keep(strategy: Replay, task: int, memory: MemoryRecord | None) -> MemoryRecord:
    """Return what a client remembers after a task of seven examples."""
    remembered: list[MemoryRecord] = []
    client = client_of(network(), task, memory=memory, remember=remembered.append)
    client = client.with_data(images_of(task, 7))
    phase = strategy.phase("keep")
    reply = phase.local(phase.broadcast(None, None), client)
    phase.fold().check(reply, Payload({}))
    assert reply.trees == {} and reply.numbers == {}  # nothing of it leaves
    return remembered[-1]


@pytest.mark.parametrize("most", [1, 5, 10, 40])
def test_the_memory_is_never_above_its_bound_and_holds_what_the_client_had(most):
    strategy, memory, had = Replay(Config(memory=most)), None, {}
    for task in range(3):
        own = images_of(task, 7)
        had |= {tuple(x.flatten().tolist()): y for x, y in zip(own.images, own.labels.tolist(), strict=True)}
        memory = keep(strategy, task, memory)
        kept = memory.trees["kept"]
        assert len(kept["labels"]) == len(kept["images"]) == min(most, 7 * (task + 1))
        found = [tuple(x.flatten().tolist()) for x in kept["images"]]
        assert len(set(found)) == len(found)
        assert [had[x] for x in found] == kept["labels"].tolist()
        assert memory.numbers == {"seen": 7.0 * (task + 1)}


def test_a_step_is_on_the_batch_and_as_many_of_the_memory():
    """One full-batch step with lr .5 on the mean over both, each example under its own task's head."""
    model, old, new = network(), images_of(0, 5), images_of(1)
    memory = MemoryRecord({"kept": {"images": old.images, "labels": old.labels}}, {"seen": 5.0})
    received = {name: w.clone() for name, w in model.state_dict().items()}
    with counted() as spent:
        reply = Replay(Config()).local(Payload({"model": received}), client_of(model, memory=memory))
    assert (spent.steps, spent.examples) == (1, 10) and reply.num_examples == 5
    assert reply.trees.keys() == {"delta"} and reply.numbers.keys() == {"loss"}
    model.load_state_dict(received)
    x, y = torch.cat([new.images, old.images]), torch.cat([new.labels, old.labels])
    own = TASK_OF_CLASS[y][:, None] == TASK_OF_CLASS[None]
    loss = F.cross_entropy(model(x).masked_fill(~own, -torch.inf), y)
    for (name, _), gradient in zip(
        model.named_parameters(), torch.autograd.grad(loss, list(model.parameters())), strict=True
    ):
        torch.testing.assert_close(reply.trees["delta"][name], -0.5 * gradient, rtol=1e-10, atol=1e-14)
    assert reply.numbers["loss"] == pytest.approx(loss.item(), rel=1e-12)


def test_what_is_replayed_is_augmented_as_the_batch_is():
    model, old = network(), images_of(0, 5)
    memory = MemoryRecord({"kept": {"images": old.images, "labels": old.labels}}, {"seen": 5.0})
    seen = []

    def augment(images, source):
        seen.append(images.clone())
        return images + torch.rand(1, generator=source, dtype=images.dtype)

    client = client_of(model, memory=memory, augment=augment)
    received = {name: w.clone() for name, w in model.state_dict().items()}
    Replay(Config()).local(Payload({"model": received}), client)
    assert len(seen) == 2
    assert torch.equal(seen[1].flatten(1).sum(1).sort().values, old.images.flatten(1).sum(1).sort().values)


def test_the_end_of_a_task_is_followed_by_keeping_and_counts_the_memory_from_then_on():
    model, strategy = network(), Replay(Config(memory=2))
    folded = Folded({"delta": {name: w * 0 for name, w in model.state_dict().items()}}, {}, 1, 1)
    state, names, processed = strategy.initial(server_of(0, model)), [], []
    for round_ in range(1, 7):
        phases = strategy.phases(state)
        names.append([phase.name for phase in phases])
        processed.append([phase.num_processed(replace(LOCAL, epochs=3), 10) for phase in phases])
        for phase in phases:
            state = phase.update(state, folded, server_of(round_, model))
    assert names == [["train"], ["train", "keep"], ["train"], ["train", "keep"], ["train"], ["train"]]
    assert processed == [[30], [30, 0], [60], [60, 0], [60], [60]]
    assert strategy.phase("keep").who == "everyone"


def test_memory_0_is_fedavg_bit_for_bit(tmp_path):
    options = (
        ("strategy.name=fedavg",),
        ("strategy.name=replay", "strategy.memory=0", "client.class_weights=none"),
        ("strategy.name=replay", "strategy.memory=7"),
    )
    average, without, replayed = (sequence_run(tmp_path / str(i), *each) for i, each in enumerate(options))
    assert bits(without) == bits(average) != bits(replayed)
    assert not (without.path / "memory").exists() or not any((without.path / "memory").rglob("*.safetensors"))
    size, summary = model_bytes(replayed), replayed.summary
    assert summary["num_failures"] == 0
    assert summary["bytes_up"]["tensors"] == summary["bytes_down"]["tensors"] == 3 * 3 * size
    files = list((replayed.path / "memory").rglob("*.safetensors"))
    assert files and {len(load_file(path)["kept/labels"]) for path in files} == {7}


def test_weighing_classes_is_refused():
    with pytest.raises(ExperimentError, match=r"client\.class_weights=balanced weighs classes") as refused:
        load("digits", ["strategy.name=replay", "client.class_weights=balanced"])
    assert refused.value.key == "client.class_weights"
    load("digits", ["strategy.name=replay", "client.class_weights=balanced", "strategy.memory=0"])


def test_without_a_sequence_it_is_refused():
    with pytest.raises(ExperimentError, match="makes no sequence of tasks") as refused:
        load("digits", ["strategy.name=replay"])
    assert refused.value.key == "data.rounds_per_task"


def test_what_is_kept_is_prepared_once_in_a_task():
    model, old, made, prepared = network(), images_of(0, 5), {}, []
    memory = MemoryRecord({"kept": {"images": old.images, "labels": old.labels}}, {"seen": 5.0})

    def keep(name, version, make):
        return made.setdefault((name, version), make())

    def prepare(examples):
        prepared.append(examples)
        return examples.images, examples.labels

    received = {name: w.clone() for name, w in model.state_dict().items()}
    for round_ in (3, 4):
        client = client_of(model, memory=memory, round=round_, keep=keep, prepare=prepare)
        own = client.train_data
        Replay(Config()).local(Payload({"model": received}), client)
        assert [each for each in prepared if each is not own] == [made["kept", 5.0]]
        prepared.clear()
    assert list(made) == [("kept", 5.0)]

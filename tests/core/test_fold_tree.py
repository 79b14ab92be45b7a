"""Whoever folds what, and in whatever order it comes: the same bits."""

from __future__ import annotations

import errno
import os
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from umbel.core.collecting import Collect
from umbel.core.flat import PIECE, pieces
from umbel.core.fold_tree import FoldTree, merged
from umbel.core.folds import Sum, UniformMean, WeightedMean, product
from umbel.core.records import Reply
from umbel.core.stored import Spill, StoredTree

FOLD = product({"m": WeightedMean(), "u": UniformMean(), "s": Sum(), "c": Collect()}, ["loss"])
SUMS = product({"m": WeightedMean("m"), "u": UniformMean(keys=["w", "v"]), "s": Sum("m")}, ["loss"])


def make_reply(client):
    random = torch.Generator().manual_seed(client)
    value = torch.randn(3, generator=random) * 10 ** (client % 7)  # no two orders of adding agree
    tree = {"w": value, "v": value[0].double() / 3, "none": torch.zeros(0, 2)}
    return Reply(dict.fromkeys(FOLD.folds, tree), {"loss": float(value[1]) / 3}, client % 5 + 1)


def bits(partial):
    trees = {
        f"{name}/{key}": tensor.reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []
        for name, tree in partial.trees.items()
        for key, tensor in sorted(tree.items())
    }
    return trees, partial.numbers, partial.num_examples, partial.num_replies


def reply_for(fold, client, holes=()):
    reply = make_reply(client)
    return None if client in holes else replace(reply, trees={name: dict(reply.trees[name]) for name in fold.folds})


def in_one_process(cohort, holes, fold=FOLD):
    """The definition: pairs are lifted and merged, and pairs of those, with nothing that waits anywhere."""
    nodes = [fold.zero() if client in holes else fold.lift(client, reply_for(fold, client)) for client in cohort]
    while len(nodes) > 1:
        nodes = [fold.merge(*nodes[i : i + 2]) if i + 1 < len(nodes) else nodes[i] for i in range(0, len(nodes), 2)]
    return bits(nodes[0])


@st.composite
def federations(draw):
    cohort = sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=23)))
    num_nodes = draw(st.integers(1, 5))
    return (
        cohort,
        {client: draw(st.integers(0, num_nodes - 1)) for client in cohort},
        draw(st.sets(st.sampled_from(cohort))),
        draw(st.randoms(use_true_random=False)),
    )


@settings(max_examples=120, deadline=None, derandomize=True)
@given(federations())
def test_any_engine_gives_the_bits_of_one_process(federation):
    cohort, node_of, holes, random = federation
    tree, arrivals = FoldTree(FOLD, len(cohort)), []
    for node in set(node_of.values()):
        local, mine = FoldTree(FOLD, len(cohort)), [client for client in cohort if node_of[client] == node]
        for client in random.sample(mine, len(mine)):
            local.add_reply(cohort.index(client), client, None if client in holes else make_reply(client))
        arrivals += [(tree.add_reply, cohort.index(client), client, reply) for client, reply in local.replies()]
        arrivals += [(tree.add, *branch) for branch in local.nodes()]
    random.shuffle(arrivals)
    for receive, *arguments in arrivals:
        receive(*arguments)
    assert bits(tree.root()) == in_one_process(cohort, holes)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(federations(), st.integers(0, 400), st.sampled_from([FOLD, SUMS]))
def test_waiting_on_disk_gives_the_same_bits(federation, max_waiting_bytes, fold):
    cohort, _, holes, random = federation
    count = 0
    spill = Spill()

    def counting(trees):
        nonlocal count
        count += 1
        return spill(trees)

    tree = FoldTree(fold, len(cohort), counting, max_waiting_bytes)
    for client in random.sample(cohort, len(cohort)):
        tree.add_reply(cohort.index(client), client, reply_for(fold, client, holes))
    assert bits(tree.root()) == in_one_process(cohort, holes, fold)
    # With no memory at all something did wait on disk, but of a single client.
    assert max_waiting_bytes or holes or count or len(cohort) == 1


def test_the_order_is_seen_in_the_bits():
    # Otherwise the tests above would say nothing.
    cohort = list(range(12))
    assert in_one_process(cohort, ()) != in_one_process(cohort[::-1], ())
    assert in_one_process(cohort, ()) != in_one_process([*cohort[1:], 0], ())


def test_a_hole_is_not_closed_up():
    # (0 1) (2 3) with 1 missing is (0) (2 3), never (0 2) (3).
    values = {0: 2.0**53, 2: 1.0, 3: 1.0}
    fold = product({"s": Sum()})
    tree = FoldTree(fold, 4)
    for client in range(4):
        value = values.get(client)
        reply = Reply({"s": {"x": torch.tensor(value, dtype=torch.float64)}}) if value else None
        tree.add_reply(client, client, reply)
    # 2^53 + (1 + 1) is exact; (2^53 + 1) + 1 rounds back to 2^53 twice.
    assert fold.finish(tree.root()).trees["s"]["x"].item() == 2**53 + 2


@pytest.mark.parametrize("names", [(), ("x",)])
@pytest.mark.parametrize(("short", "spilled"), [(0, False), (1, True)])
def test_in_order_at_most_one_accumulator_a_level_waits(short, spilled, names):
    """Of 64 replies six wait before the last one comes, one a level: a reply as it came, and five accumulators."""
    fold, count = product({"s": Sum(keys=names)}), 64
    assert fold.is_sum is bool(names)  # sums are added to piece by piece, anything else is merged as a whole

    def fresh(place=0):
        return Reply({"s": {"x": torch.full((2,), float(place))}})  # 8 bytes, and its accumulator 24 with the weight

    num_bytes = fresh().num_bytes
    assert fold.lift(0, fresh()).num_bytes == 3 * num_bytes
    written = []

    class Elsewhere:
        def __init__(self, trees):
            self.trees = trees

        def load(self):
            return self.trees

        def pieces(self, tree, name):
            return pieces(self.trees[tree][name])

        def forget(self):
            pass

    def spill(trees):
        written.append(trees)
        return Elsewhere(trees)

    tree = FoldTree(fold, count, spill, max_waiting_bytes=(1 + 3 * 5) * num_bytes - short)
    for place in range(count):
        tree.add_reply(place, place, fresh(place))
    assert bool(written) is spilled
    root = tree.root()
    assert root.num_replies == count and root.trees["s"]["x"].tolist() == [sum(range(count))] * 2


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.sets(st.integers(0, 23)))
def test_a_reply_waits_unless_its_sibling_is_there(num_leaves, held):
    """What waits is handed over as it came; what has met its sibling is an accumulator by then."""
    tree, present = FoldTree(FOLD, num_leaves), sorted(place for place in held if place < num_leaves)
    for place in present:
        before = merged([each for each in present if each < place], num_leaves)
        after = merged([each for each in present if each <= place], num_leaves)
        assert tree.waits(place) == ((place,) in after and (place,) not in before)
        tree.add_reply(place, place, make_reply(place))
    replies = dict(tree.replies())
    assert {(place,) for place in replies} == {leaves for leaves in merged(present, num_leaves) if len(leaves) == 1}
    assert all(reply.num_examples == place % 5 + 1 for place, reply in replies.items())
    assert not list(tree.replies())


def test_a_reply_that_has_waited_is_lifted_by_who_knows_what_to_do_when_that_fails():
    lifted = []

    def lift(client, reply):
        lifted.append(client)
        return FOLD.zero() if client == 7 else FOLD.lift(client, reply)

    tree = FoldTree(FOLD, 2, lift=lift)
    tree.add_reply(0, 7, make_reply(7))
    tree.add(0, 1, FOLD.lift(8, make_reply(8)))
    assert lifted == [7] and bits(tree.root()) == bits(FOLD.lift(8, make_reply(8)))


def test_missing_replies():
    tree = FoldTree(FOLD, 3)
    tree.add(0, 0, FOLD.lift(0, make_reply(0)))
    tree.add(0, 2, FOLD.lift(2, make_reply(2)))
    with pytest.raises(ValueError, match="Some of the 3 replies are missing"):
        tree.root()
    assert [(level, index) for level, index, _ in tree.nodes()] == [(0, 0), (1, 1)]
    assert not list(tree.nodes())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.sets(st.integers(0, 23)))
def test_a_process_hands_over_one_accumulator_for_the_leaves_that_it_merges(num_leaves, held):
    held = {place for place in held if place < num_leaves}
    tree = FoldTree(FOLD, num_leaves)
    for place in sorted(held):
        tree.add(0, place, FOLD.lift(place, make_reply(place)))
    sent = [range(index << level, min((index + 1) << level, num_leaves)) for level, index, _ in tree.nodes()]
    assert sorted(merged(held, num_leaves)) == sorted(tuple(leaves) for leaves in sent)


class Peak(TorchFunctionMode):
    """Notes the most bytes that tensors made inside have had at once, small ones apart."""

    def __init__(self):
        super().__init__()
        self.live, self.most = {}, 0

    def __torch_function__(self, function, types, args=(), kwargs=None):
        made = function(*args, **(kwargs or {}))
        for tensor in made if isinstance(made, (list, tuple)) else [made]:
            if isinstance(tensor, torch.Tensor) and tensor.untyped_storage().nbytes() > 1 << 16:
                storage = tensor.untyped_storage()
                self.live[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.live = {place: each for place, each in self.live.items() if not each[0].expired()}
        self.most = max(self.most, sum(num_bytes for _, num_bytes in self.live.values()))
        return made


def fresh(client, count=1 << 18):
    random = torch.Generator().manual_seed(client)
    return Reply({"m": {f"w{i}": torch.randn(count // 8, generator=random) for i in range(8)}}, {}, client + 1)


@pytest.mark.parametrize(
    ("num_clients", "max_waiting_bytes", "copies"), [(32, 0, 3.0), (32, 1 << 40, 11.0), (2, 0, 3.0)]
)
def test_however_many_clients_a_sum_takes_little_more_than_itself(num_clients, max_waiting_bytes, copies):
    """The reply that comes, the sum it is added to, and pieces; with memory for it, a sum for each level that waits."""
    fold = product({"m": WeightedMean("m")})
    with Peak() as peak:
        tree = FoldTree(fold, num_clients, Spill(), max_waiting_bytes)
        for place in range(num_clients):
            tree.add_reply(place, place, fresh(place))
        mean = fold.finish(tree.root())
    size = 1 << 20
    assert copies - 1 < peak.most / size <= copies + 0.5
    expected = FoldTree(fold, num_clients)
    for place in range(num_clients):
        expected.add(0, place, fold.lift(place, fresh(place)))
    whole = fold.finish(expected.root())
    assert all(torch.equal(mean.trees["m"][name], tensor) for name, tensor in whole.trees["m"].items())


def test_a_reply_that_would_wait_on_disk_is_never_in_memory_twice():
    fold, spill, reply = product({"m": WeightedMean("m")}), Spill(), fresh(3)
    before = {name: tensor.clone() for name, tensor in reply.trees["m"].items()}
    tree = FoldTree(fold, 4, spill, max_waiting_bytes=1 << 16)
    with Peak() as peak:
        kept = tree.kept(reply)
    assert peak.most <= PIECE * 8  # what is written at once
    for tensor in reply.trees["m"].values():
        tensor.zero_()  # as its client may
    assert isinstance(kept.trees["m"], StoredTree) and (kept.num_examples, kept.numbers) == (4, {})
    assert all(torch.equal(kept.trees["m"][name], tensor) for name, tensor in before.items())
    room = spill.num_bytes
    del kept  # its client failed after all
    again = tree.kept(fresh(4))
    assert spill.num_bytes == room
    tree.add_reply(0, 4, again)
    assert tree._waiting_bytes == 0
    # Where there is room, and where a fold looks at replies one by one, they are in memory.
    for other in (
        FoldTree(fold, 4, spill, 1 << 30),
        FoldTree(product({"m": Collect()}), 4, spill, 0),
        FoldTree(fold, 4),
    ):
        owned = other.kept(reply := fresh(5))
        assert type(owned.trees["m"]) is dict and owned.trees["m"]["w0"].data_ptr() != reply.trees["m"]["w0"].data_ptr()


def test_room_on_disk_is_used_again():
    spill, fold = Spill(), product({"s": Sum(keys=["x"])})
    tree = FoldTree(fold, 64, spill, 0)
    for place in range(64):
        tree.add_reply(place, place, Reply({"s": {"x": torch.full((1000,), 2.0**place)}}))
    assert tree.root().trees["s"]["x"][0].item() == 2.0**64 - 1
    assert spill.num_bytes <= 4032 + 5 * (8000 + 128)  # a reply, and a sum a level


def test_without_room_on_disk_what_waits_is_in_memory_and_somebody_is_told(monkeypatch):
    told = []

    def full(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    tree = FoldTree(SUMS, 5, Spill(7, told.append), 0)
    for place in range(5):
        tree.add_reply(place, place, reply_for(SUMS, place))
    assert bits(tree.root()) == in_one_process(list(range(5)), (), SUMS)
    (text,) = told
    assert "engine.memory_bytes=7" in text and "No space left" in text and "waits in memory" in text


def test_what_lies_in_a_file_is_added_from_there():
    """A process that hands over what waits on disk hands over where it is."""
    local, tree = FoldTree(SUMS, 11, Spill(), 0), FoldTree(SUMS, 11)
    for place in range(1, 11):
        local.add_reply(place, place, reply_for(SUMS, place))
    tree.add_reply(0, 0, reply_for(SUMS, 0))
    for client, reply in local.replies():
        assert isinstance(reply.trees["m"], StoredTree)
        tree.add_reply(client, client, reply)
    for level, index, partial in local.nodes():
        assert isinstance(partial.trees["m"], StoredTree) and partial.num_bytes > 0
        tree.add(level, index, partial)
    assert bits(tree.root()) == in_one_process(list(range(11)), (), SUMS)

"""Whoever folds what, and in whatever order it comes: the same bits."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from umbel.core.blocks import Assembler, Block, BlockTree, cut, fold_block, merged
from umbel.core.collecting import Collect
from umbel.core.folds import Sum, UniformMean, WeightedMean, product
from umbel.core.records import Reply
from umbel.server.exchange import Spill

FOLD = product({"m": WeightedMean(), "u": UniformMean(), "s": Sum(), "c": Collect()}, ["loss"])


def make_reply(client):
    random = torch.Generator().manual_seed(client)
    value = torch.randn(3, generator=random) * 10 ** (client % 7)  # no two orders of adding agree
    tree = {"w": value, "v": value[0].double() / 3}
    return Reply(dict.fromkeys(FOLD.folds, tree), {"loss": float(value[1]) / 3}, client % 5 + 1)


def bits(partial):
    trees = {
        f"{name}/{key}": tensor.reshape(-1).view(torch.uint8).tolist() if tensor.numel() else []
        for name, tree in partial.trees.items()
        for key, tensor in sorted(tree.items())
    }
    return trees, partial.numbers, partial.num_examples, partial.num_replies


def in_one_process(cohort, block_size, holes):
    blocks = cut(cohort, block_size)
    tree = BlockTree(FOLD, len(blocks))
    for block in blocks:
        replies = {c: None if c in holes else make_reply(c) for c in block.clients}
        tree.add(0, block.index, fold_block(FOLD, block, replies))
    return bits(tree.root())


def test_cut():
    assert cut([3, 5, 8, 9, 11], 2) == [Block(0, (3, 5)), Block(1, (8, 9)), Block(2, (11,))]
    assert cut([3], 4) == [Block(0, (3,))]


@st.composite
def federations(draw):
    cohort = sorted(draw(st.sets(st.integers(0, 60), min_size=1, max_size=23)))
    num_nodes = draw(st.integers(1, 5))
    return (
        cohort,
        draw(st.integers(1, 6)),
        {client: draw(st.integers(0, num_nodes - 1)) for client in cohort},
        draw(st.sets(st.sampled_from(cohort))),
        draw(st.randoms(use_true_random=False)),
    )


@settings(max_examples=120, deadline=None, derandomize=True)
@given(federations())
def test_any_engine_gives_the_bits_of_one_process(federation):
    cohort, block_size, node_of, holes, random = federation
    blocks = cut(cohort, block_size)
    assembler = Assembler(FOLD, blocks)
    arrivals = []
    for node in set(node_of.values()):
        local, mine = BlockTree(FOLD, len(blocks)), {c for c in cohort if node_of[c] == node}
        shuffled = random.sample(blocks, len(blocks))
        for block in shuffled:
            replies = {c: None if c in holes else make_reply(c) for c in block.clients if c in mine}
            if mine.issuperset(block.clients):
                local.add(0, block.index, fold_block(FOLD, block, replies))
            else:
                arrivals += [(assembler.add_client, client, reply) for client, reply in replies.items()]
        arrivals += [(assembler.add_node, *merged) for merged in local.nodes()]
    random.shuffle(arrivals)
    for receive, *arguments in arrivals:
        receive(*arguments)
    assert bits(assembler.finish()) == in_one_process(cohort, block_size, holes)


@settings(max_examples=30, deadline=None, derandomize=True)
@given(federations(), st.integers(0, 400))
def test_waiting_on_disk_gives_the_same_bits(tmp_path_factory, federation, max_waiting_bytes):
    cohort, block_size, _, holes, random = federation
    blocks = cut(cohort, block_size)
    folder = tmp_path_factory.mktemp("spill")
    spill, count = Spill(folder), 0

    def counting(partial):
        nonlocal count
        count += 1
        return spill(partial)

    tree = BlockTree(FOLD, len(blocks), counting, max_waiting_bytes)
    assembler = Assembler(FOLD, blocks, tree)
    for client in random.sample(cohort, len(cohort)):
        assembler.add_client(client, None if client in holes else make_reply(client))
    assert bits(assembler.finish()) == in_one_process(cohort, block_size, holes)
    assert max_waiting_bytes or holes or count  # with no memory at all something did wait on disk
    assert not list(folder.iterdir())  # and was removed when it was read


def test_the_order_is_seen_in_the_bits():
    # Otherwise the tests above would say nothing.
    cohort = list(range(12))
    assert in_one_process(cohort, 4, ()) != in_one_process(cohort[::-1], 4, ())
    assert in_one_process(cohort, 4, ()) != in_one_process(cohort, 3, ())


def test_a_hole_is_not_closed_up():
    # Blocks are cut from the selected: (0 1) (2 3) with 1 missing is (0) (2 3), never (0 2) (3).
    values = {0: 2.0**53, 2: 1.0, 3: 1.0}
    blocks, fold = cut([0, 1, 2, 3], 2), product({"s": Sum()})
    assembler = Assembler(fold, blocks)
    for client in range(4):
        value = values.get(client)
        tree = {"x": torch.tensor(value, dtype=torch.float64)} if value else None
        assembler.add_client(client, Reply({"s": tree}) if tree else None)
    # 2^53 + (1 + 1) is exact; (2^53 + 1) + 1 rounds back to 2^53 twice.
    assert fold.finish(assembler.finish()).trees["s"]["x"].item() == 2**53 + 2


@pytest.mark.parametrize(("room", "spilled"), [(6, False), (5, True)])
def test_in_order_at_most_one_accumulator_a_level_waits(room, spilled):
    """Of 64 blocks at most six wait, at levels 0 to 5, before the last one comes; with room for five one is spilled."""
    fold, count = product({"s": Sum()}), 64
    leaves = [fold.lift(index, Reply({"s": {"x": torch.zeros(1)}})) for index in range(count)]
    written = []

    def spill(partial):
        written.append(partial)
        return lambda: partial

    tree = BlockTree(fold, count, spill, max_waiting_bytes=room * leaves[0].num_bytes)
    for index, leaf in enumerate(leaves):
        tree.add(0, index, leaf)
    assert bool(written) is spilled
    assert tree.root().num_replies == count


def test_missing_blocks():
    tree = BlockTree(FOLD, 3)
    tree.add(0, 0, FOLD.lift(0, make_reply(0)))
    tree.add(0, 2, FOLD.lift(2, make_reply(2)))
    with pytest.raises(ValueError, match="Some of the 3 blocks are missing"):
        tree.root()
    assert [(level, index) for level, index, _ in tree.nodes()] == [(0, 0), (1, 1)]
    assert not list(tree.nodes())


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 24), st.sets(st.integers(0, 23)))
def test_a_node_sends_one_accumulator_for_the_blocks_that_it_merges(num_blocks, held):
    whole = {index for index in held if index < num_blocks}
    tree = BlockTree(FOLD, num_blocks)
    for index in sorted(whole):
        tree.add(0, index, FOLD.lift(index, make_reply(index)))
    sent = [range(index << level, min((index + 1) << level, num_blocks)) for level, index, _ in tree.nodes()]
    assert sorted(merged(whole, num_blocks)) == sorted(tuple(blocks) for blocks in sent)

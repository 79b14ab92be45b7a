"""A node's work in pieces, a block or a client each: the parts of one are disjoint, and together they are all of it."""

from __future__ import annotations

import torch

from umbel.core.blocks import Block
from umbel.core.memory import Version
from umbel.core.messages import Pieces, decode_work, encode_payload, encode_work, split_clients, split_work
from umbel.core.records import Payload
from umbel.core.work import Work

BLOCKS = (Block(0, (0, 1, 4)), Block(2, (7, 8, 9)))
MEMORIES = {1: Version(2, 0, "a"), 8: Version(3, 1, "b")}
WORK = Work("run", "c", 4, 1, "train", "hash", 2, BLOCKS, 3, frozenset({0, 1, 4, 8, 9}), MEMORIES)
PAYLOAD = Payload({"model": {"w": torch.arange(3.0)}}, {"rate": 0.5})


def read(pieces: Pieces) -> Work:
    work, payload = decode_work(Pieces(pieces.head, encode_payload(PAYLOAD)).content())
    assert torch.equal(payload.trees["model"]["w"], PAYLOAD.trees["model"]["w"]) and payload.numbers == {"rate": 0.5}
    assert work.clients == frozenset(pieces.clients)
    fields = ("run", "attempt", "round", "step", "phase", "config_hash", "checkpoint_round", "num_blocks")
    assert [getattr(work, name) for name in fields] == [getattr(WORK, name) for name in fields]
    return work


def test_a_piece_a_block_and_then_a_piece_a_client() -> None:
    by_block = split_work(encode_work(WORK, PAYLOAD, encode_payload(PAYLOAD)))
    assert [(read(piece).blocks, piece.clients) for piece in by_block] == [
        ((BLOCKS[0],), (0, 1, 4)),
        ((BLOCKS[1],), (8, 9)),
    ]
    alone = [split_clients(piece) for piece in by_block]
    assert [[piece.clients for piece in pieces] for pieces in alone] == [[(0,), (1,), (4,)], [(8,), (9,)]]
    for block, pieces in zip(BLOCKS, alone, strict=True):
        for piece in pieces:  # which still says in which block it belongs: it is not added up there
            work = read(piece)
            assert work.blocks == (block,)
            assert work.memories == {client: MEMORIES[client] for client in piece.clients if client in MEMORIES}

"""The collector leaves what was there alone, and finds it afterwards."""

from __future__ import annotations

import gc
import weakref

import pytest

from umbel.core.settled import settled


class Node:
    def __init__(self) -> None:
        self.itself = self


def test_garbage_is_found_of_what_came_later_and_of_the_rest_afterwards() -> None:
    before = Node()
    old = weakref.ref(before)
    with pytest.raises(KeyError), settled():
        assert gc.get_freeze_count()
        new = weakref.ref(Node())
        del before
        gc.collect()
        assert new() is None and old() is not None
        raise KeyError
    gc.collect()
    assert old() is None and not gc.get_freeze_count()


def test_what_others_have_left_out_stays_so() -> None:
    gc.freeze()
    try:
        with settled():
            pass
        assert gc.get_freeze_count()
    finally:
        gc.unfreeze()

"""Random numbers depend on what they are for and on nothing else."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch

from umbel.core.rng import build_seeded, drawn_key, forked, generator, key_of, numpy_generator, torch_generator


def draw(*words):
    return torch.randint(0, 2**31, (4,), generator=generator(*words)).tolist()


def test_golden_numbers():
    # A change of the scheme changes every result of every run ever reported: it has to be on purpose.
    assert key_of(0) == 270545423274129949039043623949202922342
    assert key_of(7, 3, "train", 12, "batches") == 282029409001224791948347097352900379218
    drawn = torch.randint(0, 1000, (5,), generator=generator(7, 3, "train", 12, "batches"))
    assert drawn.tolist() == [213, 246, 839, 822, 188]
    assert numpy_generator(key_of(0)).integers(0, 1000, 5).tolist() == [594, 772, 821, 955, 380]


def test_every_word_counts():
    words = [
        (0, 1, "train", 2, "batches"),
        (1, 1, "train", 2, "batches"),
        (0, 2, "train", 2, "batches"),
        (0, 1, "sketch", 2, "batches"),
        (0, 1, "train", 3, "batches"),
        (0, 1, "train", 2, "noise"),
        (0, 2, "train", 1, "batches"),
        (0, 1, "train", -1, "batches"),
    ]
    assert len({tuple(draw(*each)) for each in words}) == len(words)


def test_words_do_not_run_together():
    assert key_of(0, "a", "bc") != key_of(0, "ab", "c")
    assert key_of(0, 1) != key_of(0, "1")
    assert key_of(0, 1, 23) != key_of(0, 12, 3)
    assert key_of(0, "a") != key_of(0, "a", "")


def test_keys_have_128_bits_that_vary():
    keys = [key_of(s, c) for s, c in itertools.product(range(20), range(50))]
    assert min(keys) >= 0 and max(keys) < 2**128
    for bit in range(128):  # of 1,000 fair coins, 380 to 620 are heads but once in 10^13
        assert 380 < sum(key >> bit & 1 for key in keys) < 620


@pytest.mark.slow
def test_no_two_purposes_of_a_million_have_one_key():
    """Of 32 bits, as torch has them of a seed, a hundred pairs would agree."""
    rounds, clients, purposes = range(1, 101), range(2000), ["batches", "noise", "sample", "privacy", "a", "b"]
    num = len(rounds) * len(clients) * len(purposes)
    assert num > 10**6
    assert len({key_of(0, *words) for words in itertools.product(rounds, clients, purposes)}) == num


def test_each_bit_of_a_key_counts_in_both_libraries():
    def first(key):
        draw = torch.empty(2, dtype=torch.int64).random_(generator=torch_generator(key))
        return (*draw.tolist(), *numpy_generator(key).integers(0, 2**63, 2).tolist())

    keys = [0, *(1 << bit for bit in range(128))]
    assert [len(set(column)) for column in zip(*map(first, keys), strict=True)] == [129] * 4


def test_seeds_that_had_one_model_have_two():
    """A generator that took 32 bits of a seed gave these two one model, and these streams one order."""
    one, two = (build_seeded(lambda: torch.nn.Linear(3, 2), seed) for seed in (63578, 108145))
    assert not torch.equal(one.weight, two.weight)


def test_the_twister_is_filled_with_the_numbers_of_philox():
    """Held against numpy's own twister in the same state."""
    key = key_of(3, "a")
    words = np.random.Philox(key=key).random_raw(312).view(np.uint32)
    words[0] |= 1 << 31
    twister = np.random.MT19937()
    twister.state = {"bit_generator": "MT19937", "state": {"key": words, "pos": 624}}
    drawn = torch.empty(1000, dtype=torch.int32).random_(generator=torch_generator(key))
    assert np.array_equal(drawn.numpy(), twister.random_raw(1000) & 0x7FFFFFFF)


def test_a_filled_generator_is_uniform_and_keeps_nothing_of_normal_numbers():
    draws = torch.rand(100_000, generator=generator(1), dtype=torch.float64)
    assert abs(draws.mean() - 0.5) < 0.005 and abs(draws.var() - 1 / 12) < 0.002
    source = generator(1)
    torch.randn(3, generator=source)  # an odd number leaves one that was drawn and not given out
    source.set_state(generator(2).get_state())
    assert torch.equal(torch.randn(3, generator=source), torch.randn(3, generator=generator(2)))


def test_streams_that_begin_in_another_differ_from_it_and_each_other():
    source = generator(0)
    one, two = torch_generator(drawn_key(source)), torch_generator(drawn_key(source))
    draws = {tuple(torch.randint(0, 2**31, (4,), generator=each).tolist()) for each in (one, two, source)}
    assert len(draws) == 3


def test_order_of_drawing_does_not_matter():
    clients = list(range(6))
    forward = {c: draw(0, 1, "train", c, "batches") for c in clients}
    torch.manual_seed(99)  # nor does the global generator
    backward = {c: draw(0, 1, "train", c, "batches") for c in reversed(clients)}
    assert forward == backward


def test_forked_seeds_inside_and_restores_outside():
    torch.manual_seed(5)
    expected = torch.rand(3).tolist()
    torch.manual_seed(5)
    with forked(generator(0, purpose="noise")):
        first = torch.rand(3).tolist()
    assert torch.rand(3).tolist() == expected
    with forked(generator(0, purpose="noise")):
        assert torch.rand(3).tolist() == first
    with forked(generator(0, purpose="other")):
        assert torch.rand(3).tolist() != first


def test_forked_restores_after_an_error():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    try:
        with forked(generator(0)):
            torch.rand(3)
            raise KeyError
    except KeyError:
        pass
    assert torch.equal(torch.get_rng_state(), before)


def test_build_seeded_is_the_same_model_every_time():
    def make():
        return torch.nn.Linear(3, 2)

    torch.manual_seed(1)
    before = torch.get_rng_state()
    one, two = build_seeded(make, 4), build_seeded(make, 4, torch.float64)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(one.weight, two.weight.float()) and two.weight.dtype == torch.float64
    assert not torch.equal(one.weight, build_seeded(make, 5).weight)

"""Random numbers depend on what they are for and on nothing else."""

from __future__ import annotations

import itertools

import torch

from umbel.core.rng import build_seeded, forked, generator, seed_of


def draw(*words):
    return torch.randint(0, 2**31, (4,), generator=generator(*words)).tolist()


def test_golden_numbers():
    # A change of the scheme changes every result of every run ever reported: it has to be on purpose.
    assert seed_of(0) == 8482559467159178675
    assert seed_of(7, 3, "train", 12, "batches") == 572813695561072937
    assert torch.randint(0, 1000, (5,), generator=generator(7, 3, "train", 12, "batches")).tolist() == [
        819,
        773,
        951,
        28,
        599,
    ]


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
    assert seed_of(0, "a", "bc") != seed_of(0, "ab", "c")
    assert seed_of(0, 1) != seed_of(0, "1")
    assert seed_of(0, 1, 23) != seed_of(0, 12, 3)
    assert seed_of(0, "a") != seed_of(0, "a", "")


def test_seeds_fit_in_63_bits_and_vary():
    seeds = {seed_of(s, c) for s, c in itertools.product(range(20), range(50))}
    assert len(seeds) == 1000 and min(seeds) >= 0 and max(seeds) < 2**63
    assert max(seeds) > 2**61  # no narrower than it says


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

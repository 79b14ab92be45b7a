"""What the server learns in a round: from the public pairs, then from the ensembles of clients' representations."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.strategies.creamfl.halves import MODALITIES, NOISY, Halves, descend, moved, read, unit
from tests.strategies.creamfl.pairs import DIMENSION, PUBLIC
from umbel.core.folds import Folded
from umbel.core.records import Reply
from umbel.strategies.creamfl.contrasts import pair_loss
from umbel.strategies.creamfl.method import State

ONE_STEP = (  # of plain gradient descent, over all rows of the round
    *("strategy.server_batch_size=1000", "strategy.server_optimizer=sgd", "strategy.server_lr=0.5"),
    *("strategy.server_cosine=false", "strategy.server_clip_norm=0"),
)


def test_the_server_learns_pairs_by_the_identities_of_the_public_set(tmp_path):
    halves = Halves(tmp_path, *ONE_STEP)
    start, whole = halves.strategy.initial(halves.session.context(0)), halves.session.data.public
    public = replace(whole, concepts=whole.identities() // 100)  # so that some belong together
    server = replace(halves.session.context(1), public=public)
    model, tables = halves.encoders(start), halves.tables()
    loss = pair_loss(halves.strategy.config, model, public.identities())
    said = torch.stack([model.encode_image(tables["image"]), model.encode_text(tables["text"])])
    descend(model, loss(said, torch.arange(PUBLIC)), 0.5)
    learned = halves.strategy.after_learn(start, server)
    assert any(name.startswith("image") for name in moved(start.model, learned.model))
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(learned.model[name], tensor, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("part", [0, 40])
@pytest.mark.parametrize("names", [("image", "text"), ("text",)])
def test_distillation_is_the_mean_square_over_the_rounds_rows(tmp_path, part, names):
    halves = Halves(tmp_path, *ONE_STEP, "strategy.distil=0.6", f"strategy.public_per_round={part}")
    start = halves.said()
    rows = halves.payload(start).trees["index"]["rows"].long()
    assert len(rows) == (part or PUBLIC)
    targets = {name: unit(len(rows), 30 + seed) for seed, name in enumerate(names)}
    model, tables = halves.encoders(start), halves.tables()
    encode = {"image": model.encode_image, "text": model.encode_text}
    squares = [(encode[name](tables[name][rows]) - targets[name]).square().sum() for name in names]
    descend(model, 0.6 * sum(squares) / (len(rows) * DIMENSION), 0.5)
    distilled = halves.distilled(start, targets)
    for name in MODALITIES:  # an encoder without an ensemble stays to the bit
        assert any(each.startswith(name) for each in moved(start.model, distilled.model)) is (name in names)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(distilled.model[name], tensor, rtol=1e-5, atol=1e-6)


def test_a_row_is_distilled_towards_its_own_ensemble(tmp_path):
    """Where the ensemble of the round's rows is what the server says of them, nothing moves; in another order it does.

    Batches are small and shuffled: a target is found by the number of its row.
    """
    options = ("strategy.public_per_round=40", "strategy.server_optimizer=sgd", "strategy.server_lr=1.0")
    halves = Halves(tmp_path, *options, "strategy.server_batch_size=16")
    start = halves.said()
    rows = halves.payload(start).trees["index"]["rows"].long()
    own = {name: said[rows] for name, said in read(halves.encoders(start), halves.tables()).items()}
    for name, tensor in halves.distilled(start, own).model.items():
        # Rounding alone: batches of another size are multiplied in another order, more so on some processors.
        torch.testing.assert_close(tensor, start.model[name], rtol=0, atol=1e-5)
    turned = halves.distilled(start, {name: said.flip(0) for name, said in own.items()}).model
    changed = [name for name, tensor in turned.items() if not torch.allclose(tensor, start.model[name])]
    assert any(name.startswith("image") for name in changed) and any(name.startswith("text") for name in changed)


def test_distillation_towards_itself_moves_nothing(tmp_path):
    """With a target that is what the server says, the gradient is zero and plain SGD stays where it is."""
    halves = Halves(tmp_path, "strategy.server_optimizer=sgd", "strategy.server_clip_norm=0")
    start = halves.said()
    own = read(halves.encoders(start), halves.tables())
    for name, tensor in halves.distilled(start, own).model.items():
        torch.testing.assert_close(tensor, start.model[name], rtol=0, atol=1e-6)
    changed = moved(start.model, halves.distilled(start, {"image": own["image"].roll(1, 0)}).model)
    assert changed
    assert not any(name.startswith("text") for name in changed)  # the modality without a target is left alone


def test_a_modality_without_an_ensemble_is_not_moved_by_what_the_optimiser_remembers(tmp_path):
    halves = Halves(tmp_path, "strategy.server_weight_decay=0.1")
    server = halves.session.context(1)
    learned = halves.strategy.after_learn(halves.strategy.initial(halves.session.context(0)), server)
    distilled = halves.distilled(learned, {"image": learned.representations["image"].roll(1, 0)})
    changed = moved(learned.model, distilled.model)
    assert changed
    assert all(name.startswith("image") for name in changed)
    assert moved(learned.moments, distilled.moments)
    alone = halves.phase.update(learned, Folded({"representations": {}}, {}, 0, 0), server)
    assert not moved(learned.moments, alone.moments) and not moved(learned.model, alone.model)


def test_a_rounds_representations_are_of_one_snapshot_and_the_last_are_read_again(tmp_path):
    halves = Halves(tmp_path, *NOISY, "strategy.public_per_round=40", "strategy.distil=50")
    strategy, server = halves.strategy, halves.session.context(1)
    learned = strategy.phase("learn").update(halves.said(), Folded({}, {}, 0, 0), server)
    check(halves, learned)
    sent = {0: {"image": unit(40, 7)}, 2: {"text": unit(40, 8)}}
    replies = {client: Reply({"representations": tree}, {"loss": 1.0}, 5) for client, tree in sent.items()}
    distilled = halves.phase.update(learned, halves.fold(replies), server)
    for name in MODALITIES:  # what clients were told in this round
        assert torch.equal(distilled.representations[name], learned.representations[name])
    done = strategy.finish(distilled, server)
    assert all(torch.equal(tensor, distilled.model[name]) for name, tensor in done.model.items())
    check(halves, done)
    for name in MODALITIES:
        assert not torch.allclose(done.representations[name], learned.representations[name], atol=1e-3)


def check(halves: Halves, state: State) -> None:
    """The state's representations are what its model says of the whole public set."""
    for name, expected in read(halves.encoders(state), halves.tables()).items():
        torch.testing.assert_close(state.representations[name], expected)

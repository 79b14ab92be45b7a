"""A small CreamFL federation: six clients, two of each kind, with 90 public pairs."""

from __future__ import annotations

from umbel import RunResult, run

PUBLIC = 87  # of 400 examples of fewer captions: three tenths of what a tenth for validation leaves, class by class
DIMENSION = 8
PAIRS = (
    *("data.name=synthetic", "data.num_clients=6", "data.partition=iid", "data.public=0.3"),
    "data.options={num_examples: 400, num_test: 40, num_classes: 4, image_size: 8, attributes: 8}",
    *("data.text_encoder=bpe", "data.vocabulary=80", "data.text_length=10"),
    *("model.name=cnn", "model.sizes={width: 4, hidden: 16}"),
    *("strategy.name=creamfl", "strategy.num_image=2", "strategy.num_text=2", "strategy.num_both=2"),
    *("strategy.image_models=[cnn, mlp]", "strategy.text_models=[gru, transformer]", f"strategy.dimension={DIMENSION}"),
    "strategy.image_sizes={cnn: {width: 2, hidden: 8}, mlp: {hidden: 8, depth: 1}}",
    "strategy.text_sizes={gru: {width: 8}, transformer: {width: 8, depth: 1, heads: 2}}",
    "strategy.server_text_sizes={width: 16, depth: 1, heads: 2}",
    *("strategy.pair_loss=infonce", "strategy.server_lr=0.003", "strategy.server_batch_size=32"),
    *("client.epochs=1", "client.optimizer=adam", "client.lr=0.001", "run.rounds=2", "evaluate.clients=0"),
)


def go(results, *options: str, **more) -> RunResult:
    return run("digits", *PAIRS, f"run.results={results}", "run.name=run", *options, **more)

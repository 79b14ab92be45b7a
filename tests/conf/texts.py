"""Random overrides and YAML: what people write, and what nobody should."""

from __future__ import annotations

import yaml
from hypothesis import strategies as st

from umbel.conf.load import experiment_names, known_keys
from umbel.strategies import registry

KEYS = sorted({key for name in registry.names() for key in known_keys(name)})
BELOW = ["data.options.num_examples", "data.options.test_split", "model.sizes.width", "model.operators.wconv"]
MADE_UP = ["", ".", "a..b", "x", "run", "run.", "run.rounds.x", "strategy", "strategy.options", "strategy.options.mu"]
NUMBERS = [
    "0",
    "1",
    "-1",
    "2",
    "10",
    "0.5",
    "1e-3",
    ".9",
    "1e300",
    "1e400",
    ".nan",
    "inf",
    "-.inf",
    "9" * 25,
    "9" * 5000,
]
WORDS = [
    "",
    "true",
    "no",
    "null",
    "~",
    "auto",
    "all",
    "cpu",
    "cuda:x",
    "I",
    "fedavg",
    "fedprox",
    "flwr:Krum",
    "flwr:No",
]
DATA = [
    "digits",
    "synthetic",
    "hub:a/b",
    "hub:",
    "image_folder",
    "linear",
    "iid",
    "dirichlet",
    "long_tail",
    "sgd",
    "flip",
]
ODD = [
    "007",
    "1_000",
    "1:30",
    "0x1",
    "???",
    "${USER}",
    "a: b",
    "pics #2",
    "- x",
    "*a",
    "&a b",
    "!!int 3",
    "@",
    "\n",
    "#",
]
NESTED = [
    "[1, 2]",
    "[",
    "{a: 1}",
    "{",
    "{a: {b: [c, 1e-3]}}",
    "[.nan]",
    "{a: .inf}",
    "[" * 30 + "]" * 30,
    "'x'",
    '"',
    "'",
]
PLACES = [
    "/",
    "../..",
    "~nobody-of-this-name",
    "x" * 300,
    "a\0b",
    "\udce9",
    "os:path",
    "a b:c",
    ":x",
    "été",
    "\N{SUNFLOWER}",
]

values = st.sampled_from([*NUMBERS, *WORDS, *DATA, *ODD, *NESTED, *PLACES]) | st.text(max_size=8)
keys = st.sampled_from([*KEYS, *KEYS, *BELOW, *MADE_UP]) | st.text("ab.=", max_size=4)
overrides = st.lists(st.builds("{}={}".format, keys, values), min_size=1, max_size=3)
strategies = st.sampled_from(registry.names())

_scalars = (
    st.sampled_from([*NUMBERS, *WORDS, *DATA, *ODD, *PLACES]) | st.integers() | st.floats() | st.booleans() | st.none()
)
_trees = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(keys, inner, max_size=3), max_leaves=8
)
_sections = st.sampled_from(
    ["data", "model", "client", "strategy", "run", "evaluate", "engine", "name", "description", "x"]
)
_last = st.sampled_from(sorted({key.rpartition(".")[2] for key in KEYS}))
_documents = st.dictionaries(_sections, st.dictionaries(_last, _trees, max_size=3) | _trees, max_size=4)
_pieces = st.sampled_from(
    ["data:", "run: ", "{", "}", "[", "]", "\n", "  ", "- ", "&a ", "*a", "<<: ", "? ", ": ", "a", "1", "|", "'", "#"]
)

yaml_texts = (
    _documents.map(lambda document: yaml.dump(document, allow_unicode=True))
    | st.lists(_pieces, max_size=25).map("".join)
    | st.text(max_size=30)
)
experiments = st.sampled_from(experiment_names())

"""Texts, in YAML and behind the `=` of an override, and the value or the refusal of each."""

from __future__ import annotations

import pytest

from umbel.conf.errors import ExperimentError
from umbel.conf.load import as_yaml, load

DIGITS = "data: {name: digits}\n"
# A value as it is written, of a key that takes text: in a file and behind `data.path=`.
PATHS = [
    ("007", "007"),
    ("1_000", "1_000"),
    ("1e3", "1e3"),
    ("0x10", "0x10"),
    ("1:30", "1:30"),
    ("010", "010"),
    ("no", "no"),
    ("true", "true"),
    ("???", "???"),
    ("${USER}", "${USER}"),
    ("${data.name}", "${data.name}"),
    ("2026-01-01", "2026-01-01"),
    ("été", "été"),
    ("\N{SUNFLOWER}", "\N{SUNFLOWER}"),
]
OVERRIDES_ONLY = ["pics #2", "a: b", "- a", "[a]", "{a", "*a", "&a b", "'a'", "!x", "%a", "a\tb", " a ", "| a"]


@pytest.mark.parametrize(("text", "expected"), PATHS, ids=[text for text, _ in PATHS])
def test_text_stays_as_it_was_written(text, expected, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = load("x", (), f"description: {text}\n")
    assert given.description == expected and load("x", (), as_yaml(given)) == given
    assert load("x", (), f"data:\n  path: {text}\n").data.path == str(tmp_path / expected)
    assert load("x", [f"data.path={text}"], DIGITS).data.path == str(tmp_path / expected)


@pytest.mark.parametrize("text", OVERRIDES_ONLY)
def test_an_override_of_text_is_not_yaml(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = load("x", [f"data.path={text}", f"description={text}"], DIGITS)
    assert given.data.path == str(tmp_path / text) and given.description == text
    assert load("x", (), as_yaml(given)) == given


def test_no_path_is_none():
    for text in ("data: {path: null}", "data: {path: ~}", "data: {path: }", "data: {path: Null}"):
        assert load("x", (), text).data.path is None
    for override in ("data.path=", "data.path=null"):
        assert load("x", [override], "data: {path: /here}").data.path is None
    assert load("x", (), "data: {path: 'null'}").data.path.endswith("/null")


OWN = "data: {name: 'own:data'}\nstrategy: {name: 'flwr:Krum', b: 1}\n"
# Of a key whose type nobody says.
FREE = [
    ("1e-3", 0.001),
    ("1E3", 1000.0),
    (".5", 0.5),
    ("5.", 5.0),
    ("-3", -3),
    ("+3", 3),
    ("0", 0),
    ("true", True),
    ("False", False),
    ("null", None),
    ("010", "010"),
    ("1_000", "1_000"),
    ("1:30", "1:30"),
    ("0x10", "0x10"),
    ("2026-01-01", "2026-01-01"),
    ("???", "???"),
    ("${oc.env:USER}", "${oc.env:USER}"),
    ("'1e-3'", "1e-3"),
    ('"true"', "true"),
    ("[1, 2e0, [x, no one]]", [1, 2.0, ["x", "no one"]]),
    ("{a: 1, b: {c: 1e-3}}", {"a": 1, "b": {"c": 0.001}}),
    ("{1: x}", {"1": "x"}),
]


@pytest.mark.parametrize(("text", "expected"), FREE, ids=[text for text, _ in FREE])
def test_values_whose_type_nobody_says(text, expected):
    file = f"data:\n  name: own:data\n  options:\n    a: {text}\nstrategy:\n  name: flwr:Krum\n  b: {text}\n"
    overrides = [f"data.options.a={text}", f"strategy.b={text}"]
    for given in (load("x", (), file), load("x", overrides, OWN)):
        for value in (given.data.options["a"], given.strategy.options["b"]):
            assert value == expected and type(value) is type(expected)
        assert load("x", (), as_yaml(given)) == given


def test_hyper_parameters_of_a_base_are_numbers():
    text = "model: {name: linear}\nstrategy: {name: ggeur, base: fedprox, base_options: {mu: 1e-3}}\n"
    assert load("x", ["data.encoder=pixels"], text).strategy.options["base_options"] == {"mu": 0.001}


# `data.options` takes the type of the set's default.
OPTIONS = [
    ("hub:a/b", "test_split", "", ""),
    ("hub:a/b", "test_split", "007", "007"),
    ("hub:a/b", "test_split", "no", "no"),
    ("hub:a/b", "train_split", "train[:80%]", "train[:80%]"),
    ("hub:a/b", "limit", "30", 30),
    ("synthetic", "noise", "1", 1.0),
    ("synthetic", "noise", "1e-3", 1e-3),
    ("mnist", "hub", "yes", True),
    ("mnist", "hub", "off", False),
    ("digits4", "domains", "[mnist, usps]", ["mnist", "usps"]),
]


@pytest.mark.parametrize(("name", "option", "text", "expected"), OPTIONS)
def test_options_of_a_data_set_have_the_type_of_its_default(name, option, text, expected):
    given = load("x", [f"data.name={name}", f"data.options.{option}={text}"], DIGITS)
    assert given.data.options == {option: expected} and type(given.data.options[option]) is type(expected)
    assert load("x", (), as_yaml(given)) == given


REFUSED = [
    ("run.rounds=010", "run.rounds: expected a whole number, found '010'"),
    ("engine.workers=some", "engine.workers: expected a whole number or auto, found 'some'"),
    ("client.together=1.5", "client.together: expected a whole number or auto, found '1.5'"),
    ("client.channels_last=maybe", "client.channels_last: expected true or false or auto, found 'maybe'"),
    ("run.rounds=1:30", "run.rounds: expected a whole number"),
    ("run.rounds=1_000", "run.rounds: expected a whole number"),
    ("run.rounds=1e3", "run.rounds: expected a whole number"),
    ("run.rounds=???", r"run.rounds: expected a whole number, found '\?\?\?'"),
    ("run.rounds=${run.seed}", "run.rounds: expected a whole number"),
    ("run.rounds=", "run.rounds: expected a whole number, found ''"),
    ("run.rounds=null", "run.rounds: expected a whole number"),
    ("run.rounds=3 # three", "run.rounds: expected a whole number"),
    ("run.rounds=\u0663", "run.rounds: expected a whole number"),  # a digit in Arabic
    ("run.rounds={a: 1}", "run.rounds: expected a whole number, found a mapping"),
    ("client.lr=nan", "client.lr: expected a number"),
    ("client.lr=.nan", "client.lr should be .*finite"),
    ("client.lr=1e400", "client.lr should be .*finite"),
    ("data.top_up=1", "data.top_up: expected true or false"),
    ("data.top_up=2", "data.top_up: expected true or false"),
    ("data.options.a=yes", "data.options.a: yes is true in one YAML and text in another. Write true"),
    ("data.options=[1]", "data.options: expected a mapping"),
    ("strategy.options=3", "strategy.options is a mapping"),
    ("strategy.name=:x", "strategy.name=:x is no import path"),
    ("strategy.name=..x:y", "is no import path"),
    ("model.name=a b:c", "model.name=a b:c is no import path"),
    ("data.name=x:", "data.name=x: is no import path"),
    ("data.path=~nobody-of-this-name/x", "data.path=~nobody-of-this-name/x: "),
    ("data.path=\udce9", "no Unicode text"),
    ("data.path=" + "a" * 300, "data.path is too long for a path"),
    ("run.results=" + "a/" * 3000, "run.results is too long for a path"),
    ("run.name=" + "a" * 300, "run.name=.*should be the name of a folder"),
    ("name=../../x", "name=../../x should be a name, and no path"),
    ("run.seed=" + "9" * 5000, "run.seed: .* is beyond 64 bits"),
    ("client.lr=" + "9" * 5000, "client.lr should be .*finite"),
    ("data.options.a=" + "9" * 5000, "beyond 64 bits"),
    ("data.options.a=[" * 30, "not valid YAML|larger or deeper"),
    ("data.options." + "a." * 2000 + "b=1", "No key has as many dots"),
    (".=1", "An override is key=value"),
    ("run..rounds=1", "An override is key=value"),
    ("run.=1", "An override is key=value"),
]


@pytest.mark.parametrize(("override", "message"), REFUSED, ids=[override[:30] for override, _ in REFUSED])
def test_refused_overrides(override, message):
    with pytest.raises(ExperimentError, match=message):
        load("x", [override], DIGITS)


FILES = {
    "a section twice": (
        "client: {lr: 0.5}\nrun: {rounds: 1}\nclient: {batch_size: 8}\n",
        "client stands twice, first in line 1",
    ),
    "a key twice": ("client:\n  lr: 0.5\n  lr: 0.1\n", "line 3: lr stands twice, first in line 2"),
    "an option twice": ("data: {options: {a: 1, b: 2, a: 3}}", "a stands twice"),
    "an option beside and below": ("strategy: {name: fedprox, mu: 1, options: {mu: 2}}", "strategy.mu stands twice"),
    "a tag": ("run: {rounds: !!int 3}", "the tag .*int is not taken here"),
    "an object": ("run: !!python/object/apply:os.getcwd []", "the tag .*not taken here"),
    "a list for a key": ("? [a, b]\n: 1\n", "a key is text"),
    "two documents": ("run: {}\n---\nrun: {}\n", "not valid YAML"),
    "an anchor of nothing": ("run: *no\n", "not valid YAML"),
    "a character beyond all": ('description: "\\UFFFFFFFF"\n', "not valid YAML"),
    "half a character": ('description: "\\uD800"\n', "no Unicode text"),
    "a null character": ('description: "a\\0b"\n', "null character"),
    "a control character": ("description: \a\n", "not valid YAML"),
    "null for text": ("run: {name: null}\n", "run.name: expected text, found 'null'"),
    "a list for text": ("run: {name: [a]}\n", "run.name: expected text, found a list"),
    "a word for two things": ("data: {options: {a: No}}\n", "No is false in one YAML"),
    "a long integer": ("run: {seed: " + "1" * 5000 + "}\n", "beyond 64 bits"),
    "a long integer where any type goes": ("data: {options: {a: " + "1" * 5000 + "}}\n", "beyond 64 bits"),
    "a version of YAML": ("%YAML " + "1" * 5000 + ".1\n---\nrun: {}\n", "not valid YAML"),
    "deep lists": ("data: {options: {a: " + "[" * 5000 + "]" * 5000 + "}}\n", "larger or deeper"),
    "deep mappings": ("".join(" " * n + "a:\n" for n in range(400)), "larger or deeper"),
    "itself": ("data: &a {options: {b: *a}}\n", "larger or deeper"),
    "itself merged": ("data: &a {<<: *a}\n", "larger or deeper"),
    "exponentially many": (
        "\n".join(
            ["data:", " options:", "  a0: &a0 [x, x]", *(f"  a{n}: &a{n} [{f'*a{n - 1}, ' * 9}]" for n in range(1, 12))]
        ),
        "larger or deeper",
    ),
    "very many": ("data: {options: {a: [" + "1, " * 20_000 + "]}}\n", "larger or deeper"),
    "very long": ("# " + "x" * 600_000, "500,000 are allowed"),
}


@pytest.mark.timeout(10)
@pytest.mark.parametrize("name", FILES)
def test_refused_files(name, tmp_path):
    text, message = FILES[name]
    path = tmp_path / "own.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ExperimentError, match=message):
        load(str(path))


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-32", "latin-1"])
def test_files_that_are_not_utf_8(encoding, tmp_path):
    path = tmp_path / "own.yaml"
    path.write_bytes("description: Bl\u00fcte\nrun: {rounds: 1}\n".encode(encoding))
    with pytest.raises(ExperimentError, match=r"no text in UTF-8|not valid YAML") as caught:
        load(str(path))
    assert caught.value.remedy
    path.write_bytes("description: Bl\u00fcte\n".encode("utf-8-sig"))
    assert load(str(path)).description == "Bl\u00fcte"


def test_anchors_and_merges_that_are_small_are_read():
    text = "client: &c {lr: 0.5, batch_size: 8}\ndata: {name: 'x:y', options: {<<: *c, lr: 0.25}}\n"
    given = load("x", (), text)
    assert given.client.lr == 0.5 and given.data.options == {"lr": 0.25, "batch_size": 8}
    assert load("x", (), as_yaml(given)) == given


def test_a_section_given_as_a_whole_takes_the_place_of_the_files():
    given = load("x", ["strategy={name: fedprox}", "strategy.mu=2e-1"], "strategy: {name: fot, threshold: 0.5}")
    assert given.strategy.name == "fedprox" and given.strategy.options["mu"] == 0.2
    given = load("x", ["data.options={num_test: 5}", "data.options.num_examples=7"], "data: {name: synthetic}")
    assert given.data.options == {"num_test": 5, "num_examples": 7}
    assert load("x", ["run={rounds: 3}"], "run: {seed: 5}").run.seed == 0


def test_another_strategy_takes_the_place_of_the_files():
    text = "strategy: {name: fedprox, mu: 0.5}\n"
    assert load("x", (), text, strategy="fedprox").strategy.options["mu"] == 0.5
    assert load("x", (), text, strategy="fedopt").strategy.name == "fedopt"
    assert load("x", (), "run: {}", strategy="fedprox").strategy.options["mu"] == 0.01

"""What a site's policy takes and refuses, each refusal with its reason."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from umbel.client.node.policy import PURPOSE, Forbidden, Policy, signed_content
from umbel.conf.load import as_yaml, load
from umbel.core.identity import new_key, public_text, sign
from umbel.core.refusal import Refusal

ALICE, BOB = new_key(), new_key()
BUNDLE = "ab" * 32


def config(*overrides: str, key: object = ALICE, signer: str = "alice", **changes: str) -> dict[str, str]:
    """A run's configuration, signed as a submitter signs it; what is changed is changed before the signature."""
    experiment = load("digits", overrides)
    made = {
        "experiment": experiment.name,
        "experiment-yaml": as_yaml(experiment),
        "overrides": "",
        "folder": "",
        "resume": "",
        "signed": str(int(time.time())),
        "signer": signer,
    }
    made |= {name.replace("_", "-"): value for name, value in changes.items()}
    return made | {"signature": sign(key, PURPOSE, signed_content(BUNDLE, made))}  # type: ignore[arg-type]


@pytest.fixture
def trusted(tmp_path: Path) -> Path:
    file = tmp_path / "trusted.yaml"
    file.write_text("alice: |\n  " + public_text(ALICE).replace("\n", "\n  ") + "\n")
    return file


def allowing(tmp_path: Path, text: str) -> Policy:
    file = tmp_path / "policy.yaml"
    file.write_text(text)
    return Policy.read(file)


def test_a_signed_run_is_taken_and_every_changed_part_of_it_is_refused(trusted: Path) -> None:
    policy = Policy.read(None, trusted)
    policy.check(BUNDLE, config(), run_id=1)
    for part in ("experiment", "experiment-yaml", "overrides", "folder", "resume", "signed"):
        given = config()
        with pytest.raises(Forbidden, match="does not fit"):
            policy.check(BUNDLE, given | {part: given[part] + "1"}, run_id=2)
    with pytest.raises(Forbidden, match="does not fit"):
        policy.check("cd" * 32, config(), run_id=3)


def test_who_did_not_sign_is_named(trusted: Path) -> None:
    policy = Policy.read(None, trusted)
    unsigned = {key: value for key, value in config().items() if key != "signature"}
    with pytest.raises(Forbidden, match="not signed"):
        policy.check(BUNDLE, unsigned)
    with pytest.raises(Forbidden, match="'bob', whom this site does not trust"):
        policy.check(BUNDLE, config(key=BOB, signer="bob"))
    with pytest.raises(Forbidden, match="signature of alice does not fit"):
        policy.check(BUNDLE, config(key=BOB, signer="alice"))
    with pytest.raises(Forbidden, match="signature of alice does not fit"):
        policy.check(BUNDLE, config() | {"signature": "no base64!"})


def test_a_key_that_no_signature_covers_is_refused(trusted: Path) -> None:
    with pytest.raises(Forbidden, match="no signature covers: data_path"):
        Policy.read(None, trusted).check(BUNDLE, config() | {"data-path": "/etc"})


def test_a_signature_is_good_for_one_run_also_after_the_node_starts_again(trusted: Path, tmp_path: Path) -> None:
    seen, given = tmp_path / "home" / "signatures.json", config()
    policy = Policy.read(None, trusted, seen)
    policy.check(BUNDLE, given, run_id=7)
    policy.check(BUNDLE, given, run_id=7)  # the run's process died and starts again
    for node in (policy, Policy.read(None, trusted, seen)):
        with pytest.raises(Forbidden, match="replay"):
            node.check(BUNDLE, given, run_id=8)
    Policy.read(None, trusted, seen).check(BUNDLE, given, run_id=7)
    policy.check(BUNDLE, config(resume="yes", folder="run"), run_id=8)  # gone on with: signed anew


def test_a_refused_run_does_not_use_its_signature_up(trusted: Path, tmp_path: Path) -> None:
    file, given = tmp_path / "policy.yaml", config()
    file.write_text("experiments: [other]\n")
    policy = Policy.read(file, trusted)
    with pytest.raises(Forbidden, match="experiment 'digits'"):
        policy.check(BUNDLE, given, run_id=1)
    file.write_text("experiments: [digits]\n")  # read again
    policy.check(BUNDLE, given, run_id=2)


@pytest.mark.parametrize(("days", "match"), [(8, "8.0 days ago"), (-1, "in the future")])
def test_a_signature_has_an_age(trusted: Path, days: float, match: str) -> None:
    with pytest.raises(Forbidden, match=match):
        Policy.read(None, trusted).check(BUNDLE, config(signed=str(int(time.time() - days * 86400))))


def test_old_notes_go_when_their_signatures_are_refused_for_their_age(trusted: Path, tmp_path: Path) -> None:
    seen = tmp_path / "signatures.json"
    long_ago = time.time() - 30 * 86400
    seen.write_text(json.dumps({"old": ["1", long_ago], "young": ["2", time.time()]}))
    Policy.read(None, trusted, seen).check(BUNDLE, config(), run_id=3)
    assert "old" not in (kept := json.loads(seen.read_text()))
    assert kept["young"][0] == "2"
    assert len(kept) == 2


def test_a_signer_who_is_taken_out_is_refused_from_then_on(trusted: Path) -> None:
    policy = Policy.read(None, trusted)
    policy.check(BUNDLE, config(), run_id=1)
    trusted.write_text("{}\n")
    with pytest.raises(Forbidden, match="trusts nobody"):
        policy.check(BUNDLE, config(), run_id=2)


LISTS = [
    ("experiments: [fashion_cvt]", (), "experiment 'digits'"),
    ("strategies: [fedavg, fedprox]", ("strategy.name=scaffold",), "strategy 'scaffold'"),
    ("models: [cvt_tiny32]", ("model.name=cnn",), "model 'cnn'"),
    ("data: [mnist]", (), "data 'digits'"),
    ("max_rounds: 4", ("run.rounds=5",), "5 rounds, and this site allows 4"),
    ("data_keys: [name, partition]", ("data.num_shuffled=2",), "data."),
    (f"bundles: [{'cd' * 32}]", (), "its code is not on its list"),
]


@pytest.mark.parametrize(("text", "overrides", "match"), LISTS)
def test_what_is_on_no_list_is_refused_with_its_name(
    tmp_path: Path, text: str, overrides: tuple[str, ...], match: str
) -> None:
    with pytest.raises(Forbidden, match=match):
        allowing(tmp_path, text).check(BUNDLE, config(*overrides))


def test_what_is_on_the_lists_is_taken(tmp_path: Path) -> None:
    text = f"experiments: [digits]\nstrategies: [fedprox]\ndata: [digits]\nmax_rounds: 5\nbundles: [{BUNDLE}]"
    allowing(tmp_path, text).check(BUNDLE, config("strategy.name=fedprox", "run.rounds=5"))


def test_data_keys_at_their_defaults_are_no_matter(tmp_path: Path) -> None:
    experiment = load("digits")
    keys = [
        name
        for name in vars(experiment.data)
        if getattr(experiment.data, name) != getattr(type(experiment.data)(), name)
    ]
    allowing(tmp_path, f"data_keys: [{', '.join(keys)}]").check(BUNDLE, config())
    with pytest.raises(Forbidden, match=f"data.{keys[0]}="):
        allowing(tmp_path, f"data_keys: [{', '.join(keys[1:])}]").check(BUNDLE, config())


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        (("name: digits", "name: mine.sets:load"), "data.name=mine.sets:load"),
        (("operators: {}", "operators: {mine.op:Make: {}}"), "mine.op:Make"),
    ],
)
def test_own_code_is_refused_unless_it_is_allowed(tmp_path: Path, change: tuple[str, str], shown: str) -> None:
    given = config()
    text = given["experiment-yaml"]
    head, _, tail = text.partition("\ndata:" if "sets" in shown else "\nmodel:")
    section = "\ndata:" if "sets" in shown else "\nmodel:"
    assert change[0] in tail
    given["experiment-yaml"] = head + section + tail.replace(change[0], change[1], 1)
    with pytest.raises(Forbidden, match=shown):
        allowing(tmp_path, "max_rounds: 1000").check(BUNDLE, given)
    allowing(tmp_path, "own_code: true").check(BUNDLE, given)


def test_flowers_strategies_and_the_hubs_sets_are_no_code_of_the_run(tmp_path: Path) -> None:
    given = config("strategy.name=flwr:FedMedian", "data.name=hub:mnist")
    allowing(tmp_path, "own_code: false").check(BUNDLE, given)


def test_what_cannot_be_judged_is_refused(tmp_path: Path) -> None:
    policy = allowing(tmp_path, "max_rounds: 1000")
    with pytest.raises(Forbidden, match="overrides beside"):
        policy.check(BUNDLE, config(overrides="run.rounds=9000"))
    with pytest.raises(Forbidden, match="without its text"):
        policy.check(BUNDLE, config(experiment_yaml=""))
    with pytest.raises(Forbidden, match="cannot be read"):
        policy.check(BUNDLE, config(experiment_yaml="a: [" * 200))


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("strategys: [fedavg]", "strategys"),
        ("max_rounds: 0", "max_rounds"),
        ("max_age_days: 0", "max_age_days"),
        ("data_keys: [nme]", "data.nme"),
        ("experiments: digits", "experiments"),
    ],
)
def test_a_policy_that_says_what_cannot_be_is_refused_at_the_start(tmp_path: Path, text: str, match: str) -> None:
    with pytest.raises(Refusal, match=match):
        allowing(tmp_path, text)


def test_a_trusted_file_without_keys_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "trusted.yaml"
    file.write_text("alice: no key\n")
    with pytest.raises(Refusal, match="alice"):
        Policy.read(None, file)

"""What a site's policy takes and refuses, each refusal with its reason."""

from __future__ import annotations

import base64
import json
import secrets
import time
from pathlib import Path

import pytest
import yaml
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from umbel.client.node.allowed import Forbidden
from umbel.client.node.policy import PURPOSE, Policy, signed_content
from umbel.conf.load import as_yaml, load
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import new_key, public_text, sign

ALICE, BOB = new_key(), new_key()
ORDER = int("F" * 48 + "C7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973", 16)  # of the points of P-384
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
        "nonce": secrets.token_hex(16),
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
    for part in ("experiment", "experiment-yaml", "overrides", "folder", "resume", "signed", "nonce"):
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


def test_a_signature_that_is_written_in_another_way_is_none(trusted: Path) -> None:
    policy, given = Policy.read(None, trusted), config()
    policy.check(BUNDLE, given, run_id=1)
    r, s = decode_dss_signature(base64.b64decode(given["signature"]))
    other = base64.b64encode(encode_dss_signature(r, ORDER - s)).decode()
    ALICE.public_key().verify(base64.b64decode(other), b"umbel run\n" + canonical(given), ec.ECDSA(hashes.SHA384()))
    letters = given["signature"].rstrip("=")
    for signature in (other, given["signature"] + "\n", letters[:-1] + chr(ord(letters[-1]) + 1) + "=" * 4):
        with pytest.raises(Forbidden, match="does not fit"):
            policy.check(BUNDLE, given | {"signature": signature}, run_id=2)


def canonical(given: dict[str, str]) -> bytes:
    return json.dumps(signed_content(BUNDLE, given), sort_keys=True, separators=(",", ":")).encode()


def test_a_run_that_is_signed_twice_alike_is_a_replay(trusted: Path) -> None:
    policy, given = Policy.read(None, trusted), config()
    again = given | {"signature": sign(ALICE, PURPOSE, signed_content(BUNDLE, given))}
    assert again["signature"] != given["signature"]  # ECDSA draws
    policy.check(BUNDLE, given, run_id=1)
    with pytest.raises(Forbidden, match="replay"):
        policy.check(BUNDLE, again, run_id=2)


def test_keys_that_differ_in_a_dash_are_refused(trusted: Path) -> None:
    given = config()
    for extra in ({"experiment_yaml": given["experiment-yaml"]}, {"experiment_yaml": "evil"}):
        with pytest.raises(Forbidden, match="differ in - and _ alone"):
            Policy.read(None, trusted).check(BUNDLE, given | extra)


def test_a_run_may_last_longer_than_its_signature_is_taken(trusted: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy, given = Policy.read(None, trusted), config()
    policy.check(BUNDLE, given, run_id=1)
    later = time.time() + 8 * 86400
    monkeypatch.setattr(time, "time", lambda: later)
    policy.check(BUNDLE, given, run_id=1)  # its process is started again
    with pytest.raises(Forbidden, match="days ago"):
        Policy.read(None, trusted).check(BUNDLE, given, run_id=1)


@pytest.mark.parametrize("signed", ["", "soon", "9" * 400, "1e9", "-1"])
def test_a_run_says_when_it_was_signed(trusted: Path, signed: str) -> None:
    with pytest.raises(Forbidden, match="does not say when"):
        Policy.read(None, trusted).check(BUNDLE, config(signed=signed))


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
    text = config()["experiment-yaml"]
    encoder = config(experiment_yaml=text.replace("encoder: ''", "encoder: clip:vit", 1))
    assert encoder["experiment-yaml"] != text
    allowing(tmp_path, "own_code: false").check(BUNDLE, encoder)


@pytest.mark.parametrize(("key", "name"), [("model", "flwr:evil"), ("model", "hub:evil"), ("data", "flwr:evil")])
def test_they_are_where_something_else_is_named(tmp_path: Path, key: str, name: str) -> None:
    tree = yaml.safe_load(config()["experiment-yaml"])
    tree[key]["name"] = name
    with pytest.raises(Forbidden, match=f"{key}.name={name}"):
        allowing(tmp_path, "own_code: false").check(BUNDLE, config(experiment_yaml=yaml.safe_dump(tree)))


def test_a_strategy_that_another_goes_over_is_on_the_list_too(tmp_path: Path) -> None:
    given = config(
        "strategy.name=ggeur", "strategy.base=scaffold", "data.encoder=pca:8", "model.name=linear", "model.sizes={}"
    )
    with pytest.raises(Forbidden, match="does not allow the strategy 'scaffold'; it allows ggeur, fedavg"):
        allowing(tmp_path, "strategies: [ggeur, fedavg]").check(BUNDLE, given)
    allowing(tmp_path, "strategies: [ggeur, scaffold]").check(BUNDLE, given)


def test_its_stamp_is_another_when_a_file_has_changed(trusted: Path, tmp_path: Path) -> None:
    policy = allowing(tmp_path, "max_rounds: 3")
    policy.trusted = trusted
    before = policy.stamp()
    assert policy.stamp() == before
    trusted.write_text(trusted.read_text() + "\n# a word\n")
    changed = policy.stamp()
    assert changed != before
    (tmp_path / "policy.yaml").unlink()
    assert policy.stamp() not in (before, changed)


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

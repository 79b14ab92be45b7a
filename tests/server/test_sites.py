"""The server's list of sites: what it says, what is refused, and that a change is seen while the server is up."""

from __future__ import annotations

import json
import os

import pytest

from umbel.core.refusal import Refusal
from umbel.core.wire.identity import fingerprint, new_key, public_text
from umbel.server.sites import SITES, Sites, read_sites

NORTH, SOUTH, ALICE = new_key(), new_key(), new_key()


def key(private):
    return json.dumps(public_text(private))  # JSON is YAML


def site(private, clients, *more):
    return "\n".join([f"    key: {key(private)}", f'    clients: "{clients}"', *(f"    {line}" for line in more)])


def write(path, *sites, before=""):
    path.write_text(f"{before}sites:\n" + "\n".join(f"  site{number}:\n{each}" for number, each in enumerate(sites)))
    return path


def test_a_list_of_sites_is_read(tmp_path):
    before = f"federation: hospitals\nsubmitters:\n  alice: {{key: {key(ALICE)}}}\n"
    north, south = site(NORTH, "0-3, 9", "max_examples: 20"), site(SOUTH, "4-7", "max_examples: null", "revoked: true")
    site_list = read_sites(write(tmp_path / "sites.yaml", north, south, before=before))
    assert site_list.federation == "hospitals"
    assert {name: fingerprint(public) for name, public in site_list.submitters.items()} == {"alice": fingerprint(ALICE)}
    one, other = site_list.sites[fingerprint(NORTH)], site_list.sites[fingerprint(SOUTH)]
    assert (one.name, one.clients, one.max_examples, one.revoked) == ("site0", (range(4), range(9, 10)), 20, False)
    assert (other.name, other.max_examples, other.revoked) == ("site1", None, True)
    assert one.foreign([0, 3, 4, 9, 10], 12) == [4, 10]


def test_the_environment_names_the_list(tmp_path, monkeypatch):
    monkeypatch.delenv(SITES, raising=False)
    assert Sites.of_environment() is None
    monkeypatch.setenv(SITES, str(write(tmp_path / "sites.yaml", site(NORTH, "0"))))
    assert list(Sites.of_environment().now.sites) == [fingerprint(NORTH)]
    monkeypatch.setenv(SITES, str(tmp_path / "none.yaml"))
    with pytest.raises(Refusal, match="No such file"):
        Sites.of_environment()


def test_a_share_is_of_however_many_clients_there_are(tmp_path):
    sites = read_sites(write(tmp_path / "sites.yaml", site(NORTH, "0 of 3"), site(SOUTH, "2 of 3"))).sites
    assert sites[fingerprint(NORTH)].foreign(range(9), 9) == [3, 4, 5, 6, 7, 8]
    assert sites[fingerprint(SOUTH)].foreign(range(10), 10) == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("sites", "reason"),
    [
        ([site(NORTH, "0-3", "max_exmples: 3")], "unknown key 'max_exmples' in sites.site0.*Did you mean max_examples"),
        ([site(NORTH, "0-3"), site(NORTH, "4-7")], "site0 and site1 have one key"),
        ([site(NORTH, "0-3"), site(SOUTH, "2-7")], "site0 and site1 both have client 2"),
        ([site(NORTH, "1 of 3"), site(SOUTH, "1 of 3")], "site0 and site1 both have the same share"),
        ([site(NORTH, "1 of 3"), site(SOUTH, "1 of 4")], "both have clients, perhaps"),
        ([site(NORTH, "1 of 3"), site(SOUTH, "0-1")], "both have clients, perhaps"),
        ([site(NORTH, "3 of 3")], "has no clients"),
        ([site(NORTH, "3-0")], "'3-0' names no clients"),
        ([site(NORTH, "0-3,2")], "names client 2 twice"),
        ([site(NORTH, "")], "has no clients"),
        ([site(NORTH, "0-1000000000000")], "names no clients"),
        ([site(NORTH, "0", "max_examples: 0")], "max_examples=0"),
        ([site(NORTH, "0", "max_examples: many")], "max_examples should be int"),
        ([site(NORTH, "0", "revoked: 1")], "revoked should be bool"),
        (['    clients: "0"'], "sites.site0 has no key"),
        (['    key: "no key"\n    clients: "0"'], "no public key in PEM"),
        (["    - 1"], "sites.site0 is no mapping"),
        (["    {"], "not valid YAML"),
    ],
    ids=range(18),
)
def test_a_list_that_is_wrong_is_refused_by_name(tmp_path, sites, reason):
    path = write(tmp_path / "sites.yaml", *sites)
    with pytest.raises(Refusal, match=f"(?s)sites.*{reason}"):
        read_sites(path)


def test_two_sites_may_have_had_a_client_one_after_the_other(tmp_path):
    path = write(tmp_path / "sites.yaml", site(NORTH, "0-3", "revoked: true"), site(SOUTH, "2-7"))
    assert len(read_sites(path).sites) == 2


def test_a_change_is_seen_and_a_list_that_cannot_be_read_leaves_the_last_one(tmp_path):
    path = write(tmp_path / "sites.yaml", site(NORTH, "0-3"))
    sites = Sites(path)
    assert sites.refresh() == (False, "")
    write(path, site(NORTH, "0-3"), site(SOUTH, "4-7"))
    assert sites.refresh() == (True, "") and len(sites.now.sites) == 2
    path.write_text("sites: [")
    changed, problem = sites.refresh()
    assert not changed and "not valid YAML" in problem and "What it said before holds" in problem
    assert sites.refresh() == (False, "") and len(sites.now.sites) == 2  # said once
    path.unlink()
    assert "No such file" in sites.refresh()[1] and len(sites.now.sites) == 2
    write(path, site(SOUTH, "4-7"))
    os.utime(path, ns=(1, 1))
    assert sites.refresh() == (True, "") and list(sites.now.sites) == [fingerprint(SOUTH)]

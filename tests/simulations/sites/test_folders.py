"""The folders of a federation: what each holds, who may read it, how sites come and go."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest

from umbel.client.node.policy import Policy, read_trusted
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import fingerprint, new_key, public_text, read_key, read_public
from umbel.server.sites import read_sites
from umbel.simulations.sites import authority, folders
from umbel.simulations.sites.folders import Plan
from umbel.simulations.sites.register import Site, read_register
from umbel.simulations.sites.settings import (
    AUTHORITY,
    SERVER,
    SITE,
    SUBMIT,
    AuthoritySettings,
    ServerSettings,
    SiteSettings,
    SubmitSettings,
    read_settings,
)

PLAN = Plan("hospitals", ("fl.example.org", "10.0.0.5"), {"north": "0-3", "south": "4-7"}, ("alice",))


@pytest.fixture
def made(tmp_path: Path) -> Path:
    return folders.found_federation(tmp_path / "fl", PLAN)


def modes(folder: Path) -> dict[str, int]:
    return {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in folder.rglob("*")}


def test_each_owner_has_what_they_need_and_no_more(made: Path) -> None:
    files = {path.relative_to(made).as_posix() for path in made.rglob("*") if path.is_file()}
    site = {"README.md", "ca.pem", "policy.yaml", "site.key", "site.yaml", "trusted.yaml"}
    assert files == {
        *("authority/authority.yaml", "authority/ca.key", "authority/ca.pem"),
        *(
            f"server/{name}"
            for name in ("README.md", "ca.pem", "server.key", "server.pem", "server.yaml", "sites.yaml")
        ),
        *(f"sites/{name}/{file}" for name in ("north", "south") for file in site),
        *(f"submitters/alice/{name}" for name in ("README.md", "alice.key", "ca.pem", "submit.yaml")),
    }


def test_keys_and_folders_are_for_their_owner_alone(made: Path) -> None:
    for name, mode in modes(made).items():
        if name.endswith(".key"):
            assert mode == 0o600, name
        if (made / name).is_dir():
            assert mode == 0o700, name
    assert stat.S_IMODE(made.stat().st_mode) == 0o700


def test_the_server_knows_each_site_by_the_key_in_its_folder(made: Path) -> None:
    listed = read_sites(made / "server" / "sites.yaml")
    assert listed.federation == "hospitals"
    for name, held in (("north", range(4)), ("south", range(4, 8))):
        key = read_key(made / "sites" / name / "site.key")
        site = listed.sites[fingerprint(key)]
        assert (site.name, site.clients, site.revoked) == (name, (held,), False)
    alice = read_key(made / "submitters" / "alice" / "alice.key")
    assert fingerprint(listed.submitters["alice"]) == fingerprint(alice)


def test_a_site_trusts_the_submitters_and_knows_its_server(made: Path) -> None:
    site = made / "sites" / "north"
    settings = read_settings(site / SITE, SiteSettings)
    assert (settings.name, settings.server, settings.clients) == ("north", "fl.example.org:9092", "0-3")
    policy = Policy.read(site / "policy.yaml", site / "trusted.yaml")
    signers = policy.signers()
    assert signers is not None
    alice = read_key(made / "submitters" / "alice" / "alice.key")
    assert {name: fingerprint(key) for name, key in signers.items()} == {"alice": fingerprint(alice)}
    assert not policy.allowed().own_code
    assert read_settings(made / "server" / SERVER, ServerSettings).control_port == 8000
    assert read_settings(made / "submitters" / "alice" / SUBMIT, SubmitSettings).ssh == "fl.example.org"


def test_every_readme_has_about_ten_lines(made: Path) -> None:
    for readme in made.rglob("README.md"):
        assert 6 <= len(readme.read_text().splitlines()) <= 12, readme


def test_nothing_is_overwritten_and_a_refused_plan_leaves_nothing(made: Path, tmp_path: Path) -> None:
    before = (made / "authority" / "ca.key").read_bytes()
    with pytest.raises(Refusal, match="is there already"):
        folders.found_federation(made, PLAN)
    assert (made / "authority" / "ca.key").read_bytes() == before
    with pytest.raises(Refusal, match="both hold client 3"):
        folders.found_federation(tmp_path / "new", Plan("h", ("localhost",), {"a": "0-3", "b": "3"}))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["fl"]


@pytest.mark.parametrize(
    ("plan", "match"),
    [
        (Plan("Hospitals", ("localhost",), {}), "no name of a federation"),
        (Plan("h", (), {}), "server has no name"),
        (Plan("h", ("a b",), {}), "no name of a host"),
        (Plan("h", ("localhost",), {"../x": "0"}), "no name of a site"),
        (Plan("h", ("localhost",), {"a": "x"}), "names no clients"),
        (Plan("h", ("localhost",), {"a": ""}), "a has no clients"),
        (Plan("h", ("localhost",), {"a": "3-1"}), "names no clients"),
        (Plan("h", ("localhost",), {}, ("a/b",)), "no name of a submitter"),
        (Plan("h", ("localhost",), {"a": "0"}, ("a",)), "a is a site and a submitter"),
    ],
)
def test_a_plan_that_cannot_be_is_refused(tmp_path: Path, plan: Plan, match: str) -> None:
    with pytest.raises(Refusal, match=match):
        folders.found_federation(tmp_path / "fl", plan)
    assert list(tmp_path.iterdir()) == []


def test_a_site_keeps_its_key_and_is_admitted_by_its_public_half(made: Path, tmp_path: Path) -> None:
    own = tmp_path / "east"
    mark = folders.make_request(own, "site", "east", "fl.example.org")
    assert mark == fingerprint(read_key(own / "site.key"))
    assert "PRIVATE" not in (own / "request.yaml").read_text()
    back = folders.admit(made, own / "request.yaml", "8-11", max_examples=500)
    assert "site.key" not in {path.name for path in back.iterdir()}
    site = read_sites(made / "server" / "sites.yaml").sites[mark]
    assert (site.name, site.clients, site.max_examples) == ("east", (range(8, 12),), 500)
    with pytest.raises(Refusal, match="a site east already"):
        folders.admit(made, own / "request.yaml", "12")


def test_a_submitter_is_admitted_likewise(made: Path, tmp_path: Path) -> None:
    mark = folders.make_request(tmp_path / "bob", "submitter", "bob", "10.0.0.5")
    back = folders.admit(made, tmp_path / "bob" / "request.yaml", "")
    assert (back / SUBMIT).is_file()
    assert fingerprint(read_sites(made / "server" / "sites.yaml").submitters["bob"]) == mark


def test_a_request_that_is_not_what_it_was_is_refused(made: Path, tmp_path: Path) -> None:
    folders.make_request(tmp_path / "east", "site", "east", "fl.example.org")
    request = tmp_path / "east" / "request.yaml"
    text = request.read_text()
    before = (made / "server" / "sites.yaml").read_bytes()
    request.write_text(text.replace("name: east", "name: west"))
    with pytest.raises(Refusal, match="not signed by its key"):
        folders.admit(made, request, "8")
    request.write_text(text)
    with pytest.raises(Refusal, match="Which clients"):
        folders.admit(made, request, "")
    with pytest.raises(Refusal, match="both hold client 3"):
        folders.admit(made, request, "3")
    folders.make_request(tmp_path / "other", "site", "other", "elsewhere.example.org")
    with pytest.raises(Refusal, match=r"for the server elsewhere\.example\.org"):
        folders.admit(made, tmp_path / "other" / "request.yaml", "8")
    assert (made / "server" / "sites.yaml").read_bytes() == before
    assert sorted(path.name for path in (made / "sites").iterdir()) == ["north", "south"]


def test_who_is_revoked_is_no_longer_taken(made: Path) -> None:
    north = fingerprint(read_key(made / "sites" / "north" / "site.key"))
    folders.revoke(made, "north")
    folders.revoke(made / "server", "alice")
    listed = read_sites(made / "server" / "sites.yaml")
    assert listed.sites[north].revoked
    assert not listed.submitters
    with pytest.raises(Refusal, match="revoked already"):
        folders.revoke(made, "north")
    with pytest.raises(Refusal, match="Did you mean 'south'"):
        folders.revoke(made, "sout")


def test_the_clients_of_a_revoked_site_can_go_to_another(made: Path, tmp_path: Path) -> None:
    folders.revoke(made, "north")
    folders.make_request(tmp_path / "new", "site", "new", "fl.example.org")
    folders.admit(made, tmp_path / "new" / "request.yaml", "0-3")
    assert {name for name, site in read_register(made / "server" / "sites.yaml").sites.items() if not site.revoked} == {
        "south",
        "new",
    }


@pytest.mark.parametrize(("kind", "name", "held"), [("site", "north", "0-3"), ("submitter", "alice", "")])
def test_who_was_revoked_comes_back_under_the_same_name(
    made: Path, tmp_path: Path, kind: str, name: str, held: str
) -> None:
    for time in range(3):
        folders.revoke(made, name)
        mark = folders.make_request(tmp_path / str(time), kind, name, "fl.example.org")
        back = folders.admit(made, tmp_path / str(time) / "request.yaml", held)
        assert back == made / f"{kind}s" / name and back.is_dir()
        listed = read_sites(made / "server" / "sites.yaml")
        known = listed.sites[mark].name if kind == "site" else fingerprint(listed.submitters[name])
        assert known == (name if kind == "site" else mark)
    assert len(list((made / f"{kind}s").glob(f"{name}.revoked-*"))) == 3


@pytest.mark.parametrize("name", ["null", "no", "on", "true", "123"])
def test_names_that_yaml_takes_for_something_else_are_names(tmp_path: Path, name: str) -> None:
    plan = Plan(name, ("localhost",), {f"{name}-a": "0", name: "1"}, (name + "b",))
    made = folders.found_federation(tmp_path / "fl", plan)
    register = read_register(made / "server" / "sites.yaml")
    assert register.federation == name and set(register.sites) == {f"{name}-a", name}
    assert {site.name for site in read_sites(made / "server" / "sites.yaml").sites.values()} == {f"{name}-a", name}
    assert read_settings(made / "sites" / name / SITE, SiteSettings).name == name
    assert set(read_trusted(made / "sites" / name / "trusted.yaml")) == {name + "b"}
    assert read_settings(made / "authority" / AUTHORITY, AuthoritySettings).federation == name


def test_a_key_is_one_owners(made: Path) -> None:
    register = read_register(made / "server" / "sites.yaml")
    with pytest.raises(Refusal, match="north and east have the same key"):
        register.with_site("east", Site(register.sites["north"].key, "8"))
    assert register.with_site("east", Site(public_text(new_key()), "8")).sites["east"].clients == "8"


def test_a_renewed_server_has_a_new_key_and_more_names(made: Path) -> None:
    server = made / "server"
    before = fingerprint(read_key(server / "server.key"))
    assert not folders.renew(made, ["fl.example.org", "fl2.example.org"])
    assert fingerprint(read_key(server / "server.key")) != before
    assert "fl2.example.org" in authority.hosts_of(server / "server.pem")
    assert authority.verifies(made / "sites" / "north" / "ca.pem", server / "server.pem")
    assert authority.public_of(server / "server.pem") == public_text(read_key(server / "server.key"))
    folders.renew(made)  # keeps the names that it has now
    assert "fl2.example.org" in authority.hosts_of(server / "server.pem")


def test_whose_folder_it_is(made: Path, tmp_path: Path) -> None:
    kinds = {"server": "server", ".": "server", "sites/north": "site", "submitters/alice": "submitter"}
    assert {folder: folders.kind_of(made / folder) for folder in kinds} == kinds
    folders.make_request(tmp_path / "east", "site", "east", "fl.example.org")
    with pytest.raises(Refusal, match="not admitted yet"):
        folders.kind_of(tmp_path / "east")
    with pytest.raises(Refusal, match="no folder of a federation"):
        folders.kind_of(tmp_path)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("name: a\nfederation: b\n", "server has no default"),
        ("name: a\nfederation: b\nserver: c:1\nwieght: 3\n", "wieght"),
        ("name: a\nfederation: b\nserver: c:1\nlog_files: 0\n", "log_files"),
    ],
)
def test_a_file_of_settings_that_says_what_cannot_be_is_refused_with_its_key(
    tmp_path: Path, text: str, match: str
) -> None:
    (tmp_path / SITE).write_text(text)
    with pytest.raises(Refusal, match=match):
        read_settings(tmp_path / SITE, SiteSettings)


def test_a_register_written_by_hand_is_read(tmp_path: Path) -> None:
    key = public_text(new_key())
    indented = key.replace("\n", "\n      ")
    (tmp_path / "sites.yaml").write_text(f"federation: h\nsites:\n  a:\n    clients: 5\n    key: |\n      {indented}\n")
    site = read_register(tmp_path / "sites.yaml").sites["a"]
    assert (site.clients, site.max_examples, site.revoked) == ("5", None, False)
    assert fingerprint(read_public(site.key)) == fingerprint(read_public(key))

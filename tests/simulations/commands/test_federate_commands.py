"""`umbel federate` across machines, as far as nothing has to run: folders, keys, and what is refused before."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.data.sites.makers import folder, site
from tests.places import ROOT
from tests.simulations.commands.command_line import umbel
from umbel.core.wire.identity import fingerprint, read_key
from umbel.server.sites import read_sites

INIT = ("--name", "hospitals", "--server", "fl.example.org", "--site", "north=0-3", "--submitter", "alice")


@pytest.fixture
def made(tmp_path: Path) -> Path:
    done = umbel("federate", "init", tmp_path / "fl", *INIT)
    assert done.exit_code == 0, done.output
    return tmp_path / "fl"


@pytest.mark.parametrize("arguments", [["--help"], ["federate", "--help"], ["federate", "submit", "--help"]])
def test_help_loads_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\nfrom umbel.simulations.commands.main import main\n"
        "try: main(sys.argv[1:])\nexcept SystemExit: pass\n"
        "heavy = {'torch', 'flwr', 'numpy', 'cryptography', 'yaml'} & sys.modules.keys()\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_init_says_which_folders_to_send_to_whom(tmp_path: Path) -> None:
    done = umbel("federate", "init", tmp_path / "fl", *INIT)
    assert done.stdout.split() == [
        str(tmp_path / "fl" / part) for part in ("server", "sites/north", "submitters/alice")
    ]
    again = umbel("federate", "init", tmp_path / "fl", *INIT)
    assert again.exit_code == 2
    assert "is there already" in again.output


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (("--name", "h", "--server", "a", "--site", "north"), "north has no clients"),
        (("--name", "h", "--server", "a", "--site", "n=0", "--site", "n=1"), "stands twice"),
        (("--server", "a", "--site", "n=0"), "Without --name"),
        (("--server", "a,b", "--site", "n"), "Without --name"),
        (("--site", "n", "--submitter", "b", "--server", "a"), "Without --name"),
        (("--name", "h", "--site", "n=0"), "server has no name"),
    ],
)
def test_an_init_that_cannot_be_leaves_nothing(tmp_path: Path, arguments: tuple[str, ...], match: str) -> None:
    done = umbel("federate", "init", tmp_path / "fl", *arguments)
    assert done.exit_code == 2
    assert match in done.output
    assert list(tmp_path.iterdir()) == []


def test_a_site_with_a_key_of_its_own_is_admitted_and_revoked(made: Path, tmp_path: Path) -> None:
    asked = umbel("federate", "init", tmp_path / "east", "--site", "east", "--server", "fl.example.org")
    mark = fingerprint(read_key(tmp_path / "east" / "site.key"))
    assert mark in asked.stderr
    taken = umbel("federate", "admit", made, asked.stdout.strip(), "--clients", "4-7")
    assert taken.exit_code == 0, taken.output
    assert mark in taken.stderr
    assert taken.stdout.strip() == str(made / "sites" / "east")
    assert umbel("federate", "revoke", made, "east").exit_code == 0
    assert read_sites(made / "server" / "sites.yaml").sites[mark].revoked


def test_renew_says_until_when_the_server_is_good(made: Path) -> None:
    done = umbel("federate", "renew", made, "--server", "fl.example.org,fl2.example.org")
    assert done.exit_code == 0, done.output
    assert "is good until 20" in done.stderr
    assert "ca.pem" not in done.stderr  # sites need nothing


@pytest.mark.parametrize(
    ("command", "folder", "match"),
    [
        ("serve", "sites/north", "no server's folder"),
        ("join", "server", "no site's folder"),
        ("logs", "submitters/alice", "has no logs: name a run"),
        ("status", "authority", "no folder of a federation"),
        ("down", "authority", "no folder of a federation"),
    ],
)
def test_the_wrong_folder_is_named(made: Path, command: str, folder: str, match: str) -> None:
    done = umbel("federate", command, made / folder)
    assert done.exit_code == 2
    assert match in done.output


def test_what_does_not_run_is_said_to_be_down(made: Path) -> None:
    assert "is down. Start it" in umbel("federate", "status", made / "server").output
    assert "no node runs" in umbel("federate", "status", made / "sites" / "north").output
    assert "Nothing ran in" in umbel("federate", "down", made / "server").output


def test_a_site_whose_key_others_can_read_does_not_join(made: Path) -> None:
    (made / "sites" / "north" / "site.key").chmod(0o640)
    done = umbel("federate", "join", made / "sites" / "north", "--dry-run")
    assert done.exit_code == 2
    assert "can be read by others" in done.output


EXPERIMENT = "data: {name: sites, classes: [cat, dog], image_size: 8, channels: 3, num_clients: 1}\n"


def test_a_dry_run_shows_what_an_experiment_would_send_and_compares_the_clients(made: Path, tmp_path: Path) -> None:
    folder(tmp_path / "pictures", {"cat": 5, "dog": 4})
    site(tmp_path / "data.yaml", source="image_folder", path=str(tmp_path / "pictures"))
    (tmp_path / "animals.yaml").write_text(EXPERIMENT)
    north = made / "sites" / "north"
    settings = (north / "site.yaml").read_text().replace('data: ""', f'data: "{tmp_path / "data.yaml"}"')
    (north / "site.yaml").write_text(settings.replace('clients: "0-3"', 'clients: "0"'))
    done = umbel("federate", "join", north, tmp_path / "animals.yaml", "--dry-run")
    assert done.exit_code == 0, done.output
    assert '"cat"' in done.stdout and "Nothing was sent." in done.stdout and "None" not in done.stdout
    alone = umbel("federate", "join", north, "--dry-run")
    assert alone.exit_code == 0 and "class cat: 5" in alone.stdout and "None" not in alone.stdout
    (north / "site.yaml").write_text(settings)
    more = umbel("federate", "join", north, tmp_path / "animals.yaml", "--dry-run")
    assert more.exit_code == 2
    assert "has the clients 0-3, 4 in all, and its data have 1" in more.output


def test_an_experiment_is_for_a_dry_run_alone(made: Path) -> None:
    done = umbel("federate", "join", made / "sites" / "north", "digits")
    assert done.exit_code == 2 and "add --dry-run" in done.output


def test_a_server_with_anothers_certificate_does_not_start(made: Path, tmp_path: Path) -> None:
    umbel("federate", "init", tmp_path / "other", *INIT)
    (made / "server" / "server.pem").write_bytes((tmp_path / "other" / "server" / "server.pem").read_bytes())
    done = umbel("federate", "serve", made / "server")
    assert done.exit_code == 2
    assert "is not of server.key" in done.output


def test_a_submission_is_refused_before_anybody_is_asked(made: Path) -> None:
    alice = made / "submitters" / "alice"
    for arguments, match in (
        (("digits", "run.round=1"), "Did you mean"),
        ((), "Which experiment"),
        (("digits", "model.init=results/x"), "model.init names a file"),
        (("digits", "--control", "nowhere"), "no HOST:PORT"),
    ):
        done = umbel("federate", "submit", *arguments, "--to", alice)
        assert done.exit_code == 2, done.output
        assert match in done.output


def test_a_server_that_does_not_answer_is_an_error_in_words(made: Path) -> None:
    alice = made / "submitters" / "alice"
    done = umbel("federate", "submit", "digits", "--to", alice, "--control", "127.0.0.1:9")
    assert done.exit_code == 1
    assert "Nobody answers on the control port" in done.output

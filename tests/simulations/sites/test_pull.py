"""A run's folder as it comes from a server that may send anything."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from umbel.core.files import write_json
from umbel.core.refusal import Refusal
from umbel.simulations.sites import folders
from umbel.simulations.sites.folders import Plan
from umbel.simulations.sites.pull import pull, read_config, stop_run, unpack
from umbel.simulations.sites.submit import Submitted, folder_of, note
from umbel.simulations.sites.tunnel import Submitter, TunnelError


def archive(*members: tuple[str, bytes | None, bytes]) -> io.BytesIO:
    """An archive of (name, content or None for a folder, type)."""
    made = io.BytesIO()
    with tarfile.open(fileobj=made, mode="w") as tar:
        for name, content, kind in members:
            entry = tarfile.TarInfo(name)
            entry.type = kind
            entry.size = len(content or b"")
            entry.linkname = "/etc/passwd" if kind in (tarfile.SYMTYPE, tarfile.LNKTYPE) else ""
            tar.addfile(entry, io.BytesIO(content or b""))
    made.seek(0)
    return made


FILE, FOLDER = tarfile.REGTYPE, tarfile.DIRTYPE


def test_a_folder_comes_as_it_is_without_what_is_of_the_server(tmp_path: Path) -> None:
    stream = archive(
        ("run", None, FOLDER),
        ("run/config.yaml", b"name: digits\n", FILE),
        ("run/checkpoints/r1", None, FOLDER),
        ("run/checkpoints/r1/state", b"\0" * 10_000, FILE),
        ("run/lock", b"", FILE),
        ("run/stop", b"", FILE),
    )
    unpack(stream, "run", tmp_path)
    files = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert files == {"config.yaml", "checkpoints/r1/state"}
    assert (tmp_path / "checkpoints" / "r1" / "state").read_bytes() == b"\0" * 10_000


@pytest.mark.parametrize(
    ("member", "match"),
    [
        (("../outside", b"x", FILE), "not within run"),
        (("run/../../outside", b"x", FILE), "not within run"),
        (("/etc/outside", b"x", FILE), "not within run"),
        (("other/file", b"x", FILE), "not within run"),
        (("run/link", None, tarfile.SYMTYPE), "a link or a device"),
        (("run/hard", None, tarfile.LNKTYPE), "a link or a device"),
        (("run/device", None, tarfile.CHRTYPE), "a link or a device"),
        (("run/pipe", None, tarfile.FIFOTYPE), "a link or a device"),
        (("run/config.yaml", b"again", FILE), "twice"),
    ],
)
def test_what_would_leave_the_folder_is_refused(
    tmp_path: Path, member: tuple[str, bytes | None, bytes], match: str
) -> None:
    inside = tmp_path / "deep" / "inside"
    inside.mkdir(parents=True)
    with pytest.raises(Refusal, match=match):
        unpack(archive(("run/config.yaml", b"x", FILE), member), "run", inside)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [inside / "config.yaml"]


def entry(name: str, size: int, kind: bytes = FILE) -> bytes:
    """What says that so many bytes follow, which do not."""
    made = tarfile.TarInfo(name)
    made.type, made.size = kind, size
    return made.tobuf(tarfile.GNU_FORMAT)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        (entry("run/large", 1001), "more than 1,000 bytes"),
        (entry("run/small", 600) + b"x" * 600 + b"\0" * 424 + entry("run/more", 600), "more than 1,000 bytes"),
        (entry("run/negative", -1), "more than 1,000 bytes"),
        (entry("././@LongLink", 1 << 40, tarfile.GNUTYPE_LONGNAME), "a name of 1,099,511,627,776 bytes"),
        (entry("././@PaxHeader", 1 << 40, tarfile.XHDTYPE), "a name of 1,099,511,627,776 bytes"),
        (entry("run/" + "d/" * 20, 0, FOLDER), "too deep"),
        (entry("run/a", 0) + entry("run/a/b", 0), "cannot be written"),
        (entry("run/" + "n" * 90 + "\x1b[2J", 0, tarfile.CHRTYPE), r"x1b\[2J', which is a link"),
    ],
    ids=range(8),
)
def test_no_more_is_taken_than_a_run_can_have(tmp_path: Path, content: bytes, match: str) -> None:
    with pytest.raises(Refusal, match=match) as refused:
        unpack(io.BytesIO(content + b"\0" * 1024), "run", tmp_path, most_bytes=1000)
    assert str(refused.value).isprintable()


@pytest.mark.exhaustive  # seconds: a hundred thousand of them
def test_many_small_files_are_too_many(tmp_path: Path) -> None:
    content = entry("run", 0, FOLDER) * 100_001
    with pytest.raises(Refusal, match="one file or folder too many"):
        unpack(io.BytesIO(content), "run", tmp_path)


def test_a_name_that_no_file_can_have_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Refusal, match="cannot be written"):
        unpack(archive(("run/" + "n" * 300, b"x", FILE)), "run", tmp_path)


@pytest.fixture
def local(tmp_path: Path) -> Submitter:
    """A submitter on the server itself, with a run."""
    made = folders.found_federation(tmp_path / "fl", Plan("h", ("localhost",), {"a": "0"}, ("alice",)))
    folder = made / "submitters" / "alice"
    text = (folder / "submit.yaml").read_text().replace('ssh: "localhost"', 'ssh: ""')
    (folder / "submit.yaml").write_text(text)
    run = tmp_path / "results" / "it's one"
    run.mkdir(parents=True)
    (run / "config.yaml").write_text("name: digits\n")
    note(folder, Submitted(17, str(run)), "digits")
    return Submitter.read(folder)


def test_a_run_is_fetched_by_its_name_or_number_and_never_over_another(local: Submitter, tmp_path: Path) -> None:
    target = pull(local, "it's one", tmp_path / "here")
    assert target == tmp_path / "here" / "it's one"
    assert (target / "config.yaml").read_text() == "name: digits\n"
    with pytest.raises(Refusal, match="is there already"):
        pull(local, "17", tmp_path / "here")
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["it's one"]


def test_what_is_no_run_leaves_nothing(local: Submitter, tmp_path: Path) -> None:
    (tmp_path / "results" / "it's one" / "config.yaml").unlink()
    with pytest.raises(Refusal, match=r"no config\.yaml"):
        pull(local, "17", tmp_path / "here")
    (tmp_path / "results" / "it's one").rmdir()
    with pytest.raises(TunnelError, match="cannot be fetched"):
        pull(local, "17", tmp_path / "here")
    assert list((tmp_path / "here").iterdir()) == []


def test_a_run_is_asked_to_stop_where_it_is(local: Submitter, tmp_path: Path) -> None:
    assert stop_run(local, "17") == "it's one"
    assert (tmp_path / "results" / "it's one" / "stop").is_file()
    assert read_config(local, "17") == ("it's one", "name: digits\n")


def test_a_run_that_is_not_here_is_refused_by_what_says_that_it_should_be(local: Submitter, tmp_path: Path) -> None:
    (tmp_path / "results" / "it's one" / "config.yaml").unlink()
    for ask in (stop_run, read_config):
        with pytest.raises(Refusal, match=r"no run at .*it's one on this machine.*By --control, or without `ssh`"):
            ask(local, "17")
    assert not (tmp_path / "results" / "it's one" / "stop").exists()


def test_what_fails_on_this_machine_is_not_blamed_on_ssh(local: Submitter, tmp_path: Path) -> None:
    (tmp_path / "results" / "it's one" / "stop").mkdir()
    (tmp_path / "results" / "it's one" / "stop" / "within").touch()
    with pytest.raises(TunnelError, match=r"cannot be done on this machine: cat: .*Is a directory"):
        local.there("cat", "--", str(tmp_path / "results" / "it's one" / "stop"))
    with pytest.raises(TunnelError, match="more than 16,777,216 bytes"):
        local.there("cat", "/dev/zero")


@pytest.mark.parametrize("where", ["/srv/..", "/", "results/run"])
def test_a_folder_of_the_servers_that_cannot_be_one_is_refused(local: Submitter, tmp_path: Path, where: str) -> None:
    note(local.folder, Submitted(18, where), "digits")
    with pytest.raises(Refusal, match=r"none of a run"):
        stop_run(local, where.rpartition("/")[2] or "18")


def test_a_run_that_nobody_noted_is_looked_for_where_the_server_keeps_runs(local: Submitter) -> None:
    with pytest.raises(Refusal, match="was not followed from"):
        folder_of(local, "other")
    file = local.folder / "submit.yaml"
    file.write_text(file.read_text().replace('results: ""', "results: /srv/fl/results"))
    again = Submitter.read(local.folder)
    assert folder_of(again, "other") == "/srv/fl/results/other"
    for name in ("..", "a/b", ""):
        with pytest.raises(Refusal, match="no name of a run"):
            folder_of(again, name)


def test_a_damaged_list_of_runs_is_refused(local: Submitter) -> None:
    write_json(local.folder / "runs.json", [1])
    with pytest.raises(Refusal, match="damaged"):
        folder_of(local, "17")


def test_words_arrive_on_the_server_as_they_are_here(local: Submitter) -> None:
    file = local.folder / "submit.yaml"
    file.write_text(file.read_text().replace('ssh: ""', 'ssh: fl\nssh_options: [-p, "2222"]'))
    line = Submitter.read(local.folder).ssh(command=("cat", "--", "it's $(one); *"))
    assert line[-4:] == ["2222", "--", "fl", "cat -- 'it'\"'\"'s $(one); *'"]

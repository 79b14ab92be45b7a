"""The small YAML files of the folders: what the server, a site and a submitter say about themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from annotated_types import Ge, Interval

from umbel.conf.typed import section
from umbel.conf.written import read_yaml
from umbel.core.ranges import check_ranges
from umbel.core.refusal import Refusal

SERVER, SITE, SUBMIT = "server.yaml", "site.yaml", "submit.yaml"
AUTHORITY, SITES = "authority.yaml", "sites.yaml"
_Kind = TypeVar("_Kind")


@dataclass(frozen=True)
class AuthoritySettings:
    """`authority.yaml`: what a certificate is made of, anew.

    Attributes:
        federation: Its name.
        server: Names and addresses of the server, the first of which sites are told.
        port: Port by which sites reach it.
    """

    federation: str
    server: list[str]
    port: Annotated[int, Interval(ge=1, le=65535)] = 9092


@dataclass(frozen=True)
class ServerSettings:
    """`server.yaml`.

    Attributes:
        federation: Its name.
        listen: Where sites connect to.
        control_port: Port of the Control API, on this machine's loopback alone.
        database: File in which the SuperLink remembers keys and runs.
        results: Folder of the runs.
        log_megabytes: How large a log becomes before a new one is begun.
        log_files: How many old ones are kept.
    """

    federation: str
    listen: str = "0.0.0.0:9092"
    control_port: Annotated[int, Interval(ge=1, le=65535)] = 8000
    database: str = "state/superlink.db"
    results: str = "results"
    log_megabytes: Annotated[int, Ge(1)] = 20
    log_files: Annotated[int, Ge(1)] = 5


@dataclass(frozen=True)
class SiteSettings:
    """`site.yaml`.

    Attributes:
        name: The site's name.
        federation: Name of the federation.
        server: Where the server is, `HOST:PORT`.
        clients: The client numbers that it holds, as `0-3`.
        data: Its data file, which says what of its own data the clients have; empty takes the experiment's data set.
        device: What it trains on, as `cuda:0`; empty leaves it to the experiment.
        state: Folder of its clients' memory and of unpacked bundles.
        node_config: Further keys of the node's configuration.
        log_megabytes: How large a log becomes before a new one is begun.
        log_files: How many old ones are kept.
    """

    name: str
    federation: str
    server: str
    clients: str = ""
    data: str = ""
    device: str = ""
    state: str = "state"
    node_config: dict[str, Any] = field(default_factory=dict)
    log_megabytes: Annotated[int, Ge(1)] = 20
    log_files: Annotated[int, Ge(1)] = 5


@dataclass(frozen=True)
class SubmitSettings:
    """`submit.yaml`.

    Attributes:
        name: The submitter's name.
        federation: Name of the federation.
        ssh: Whom `ssh` is told to connect to, as `fl.example.org` or a name of ~/.ssh/config; empty on the server
            itself, where no tunnel is needed.
        ssh_options: What `ssh` is told besides, such as `[-p, "2222"]`.
        control_port: Port of the Control API on the server's loopback.
        results: The folder of the runs on the server, absolute; needed to pull, resume or stop a run that was
            submitted from elsewhere.
    """

    name: str
    federation: str
    ssh: str = ""
    ssh_options: list[str] = field(default_factory=list)
    control_port: Annotated[int, Interval(ge=1, le=65535)] = 8000
    results: str = ""


def read_settings(path: Path, kind: type[_Kind]) -> _Kind:
    """Read one of the files.

    Raises:
        Refusal: There is none, or it says what it cannot say.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"{path} cannot be read: {error}.", remedy="Is it the right folder?") from error
    try:
        settings: _Kind = section(kind, read_yaml(text, str(path)), "")
        check_ranges(settings, "")
    except Refusal as error:
        raise Refusal(f"{path}: {error.reason}", key=error.key, remedy=error.remedy) from error
    return settings

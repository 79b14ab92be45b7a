"""The folders of a federation, each with all that its owner needs: authority, server, a site each, a submitter each."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from umbel.core import clients
from umbel.core.files import write_text
from umbel.core.leftovers import beside
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import fingerprint, new_key, public_text, read_public, sign, verify, write_key
from umbel.simulations.sites import authority, texts
from umbel.simulations.sites.authority import lock_down
from umbel.simulations.sites.names import Address, check_name
from umbel.simulations.sites.register import (
    Register,
    Site,
    Submitter,
    changed,
    read_register,
    write_register,
)
from umbel.simulations.sites.settings import (
    AUTHORITY,
    SERVER,
    SITE,
    SITES,
    SUBMIT,
    AuthoritySettings,
    read_settings,
)

SITE_KEY, SERVER_KEY, SERVER_CERTIFICATE, CA = "site.key", "server.key", "server.pem", "ca.pem"
REQUEST, TRUSTED, POLICY, README = "request.yaml", "trusted.yaml", "policy.yaml", "README.md"
_REQUEST = "request"  # what the signature of a request is for


@dataclass(frozen=True)
class Plan:
    """A federation that is to be made.

    Attributes:
        federation: Its name.
        server: Names and addresses of the server; sites are told the first.
        sites: Client numbers of each site whose key is made here.
        submitters: Those whose keys are made here.
        port: Port by which sites reach the server.
        control_port: Port of the Control API on the server's loopback.
        ssh: What submitters give to ssh; empty is the server's first name, or nothing where that is this machine.
    """

    federation: str
    server: Sequence[str]
    sites: Mapping[str, str]
    submitters: Sequence[str] = ()
    port: int = 9092
    control_port: int = 8000
    ssh: str = ""


@dataclass(frozen=True)
class Request:
    """What a site or a submitter sends to be admitted.

    Attributes:
        kind: `site` or `submitter`.
        name: The name.
        server: The server that it means.
        key: The public half of the key, PEM.
        signature: By the key, over all the rest: whoever sends it has the key.
    """

    kind: str
    name: str
    server: str
    key: str
    signature: str = ""

    def content(self) -> dict[str, str]:
        """Return what is signed."""
        return {"kind": self.kind, "name": self.name, "server": self.server, "key": self.key}


def found_federation(folder: Path, plan: Plan) -> Path:
    """Make a federation: the folder with everybody's folders in it.

    Raises:
        Refusal: The folder is there already, or the plan cannot be.
    """
    check_name(plan.federation, "a federation", "--name")
    if not plan.server:
        raise Refusal("The server has no name.", key="--server", remedy="Give one by which sites reach it.")
    for host in plan.server:
        authority.general_name(host)
    for name, held in plan.sites.items():
        check_name(name, "a site", "--site")
        clients.parse(held, f"--site {name}")
    for name in plan.submitters:
        check_name(name, "a submitter", "--submitter")

    def fill(part: Path) -> None:
        _fill_authority(part / "authority", plan)
        keys = {name: new_key() for name in (*plan.sites, *plan.submitters)}
        public = {name: public_text(key) for name, key in keys.items()}
        register = Register(
            plan.federation,
            {name: Submitter(public[name]) for name in plan.submitters},
            {name: Site(public[name], held) for name, held in plan.sites.items()},
        )
        register.check()
        _fill_server(part / "server", part / "authority", plan, register)
        for name in plan.sites:
            _fill_site(part / "sites" / name, part, register, name, has_key=True)
            write_key(part / "sites" / name / SITE_KEY, keys[name])
        for name in plan.submitters:
            _fill_submitter(part / "submitters" / name, part, plan, name)
            write_key(part / "submitters" / name / f"{name}.key", keys[name])

    return _made(folder, fill)


def make_request(folder: Path, kind: str, name: str, server: str) -> str:
    """Make the folder of a site, or a submitter, that keeps its key to itself; return the name of the key.

    Raises:
        Refusal: The folder is there already, or the name cannot be.
    """
    check_name(name, f"a {kind}", f"--{kind}")
    authority.general_name(server)
    key = new_key()

    def fill(part: Path) -> None:
        write_key(part / (SITE_KEY if kind == "site" else f"{name}.key"), key)
        request = Request(kind, name, server, public_text(key))
        signature = sign(key, _REQUEST, request.content())
        body = request.key.replace("\n", "\n  ").rstrip()
        lines = [f"kind: {kind}", f"name: {name}", f'server: "{server}"', f"key: |\n  {body}"]
        write_text(part / REQUEST, "\n".join([*lines, f"signature: {signature}"]) + "\n")
        write_text(part / README, texts.readme_request(name))

    _made(folder, fill)
    return fingerprint(key)


def admit(folder: Path, request_file: Path, held: str, max_examples: int | None = None) -> Path:
    """Take a site or a submitter in; return the folder to send back, which has no private key.

    Args:
        folder: The folder that `found_federation` made.
        request_file: What they sent.
        held: Client numbers of a site, as `4-7`.
        max_examples: The most examples that one of its clients may claim.

    Raises:
        Refusal: The request is damaged or for another server, or the name, the key or a client is taken.
    """
    settings = read_settings(folder / "authority" / AUTHORITY, AuthoritySettings)
    request = read_settings(request_file, Request)
    if request.kind not in ("site", "submitter"):
        raise Refusal(f"{request_file} asks for {request.kind!r}.", remedy="Ask for a new request.")
    check_name(request.name, f"a {request.kind}")
    if not verify(read_public(request.key), _REQUEST, request.content(), request.signature):
        raise Refusal(f"{request_file} is not signed by its key.", remedy="Ask for it again.")
    if request.server not in settings.server:
        raise Refusal(
            f"{request_file} is for the server {request.server}, and this one is {', '.join(settings.server)}.",
            remedy="Have it made with --server as sites are told.",
        )
    sites = folder / "server" / SITES
    with changed(sites):
        register = read_register(sites)
        if request.kind == "site":
            if not held:
                raise Refusal(f"Which clients does {request.name} hold?", key="--clients", remedy="Say --clients 4-7.")
            register = register.with_site(request.name, Site(request.key, held, max_examples))
            back = _vacant(folder / "sites" / request.name)
            back = _made(back, lambda part: _fill_site(part, folder, register, request.name, has_key=False))
        else:
            register = register.with_submitter(request.name, Submitter(request.key))
            plan = Plan(settings.federation, settings.server, {}, port=settings.port)
            back = _vacant(folder / "submitters" / request.name)
            back = _made(back, lambda part: _fill_submitter(part, folder, plan, request.name))
        write_register(sites, register)
    return back


def revoke(folder: Path, name: str) -> None:
    """Turn a site or a submitter away from now on.

    Raises:
        Refusal: There is none of the name.
    """
    sites = server_folder(folder) / SITES
    with changed(sites):
        write_register(sites, read_register(sites).without(name))


def renew(folder: Path, hosts: Sequence[str] = ()) -> bool:
    """Give the server a new certificate, and a new key; the authority a certificate, if it is nearly over.

    Args:
        folder: The folder that `found_federation` made.
        hosts: Names and addresses of the server from now on; none leaves them.

    Returns:
        Whether the authority has a new certificate, which every site needs.
    """
    settings = read_settings(folder / "authority" / AUTHORITY, AuthoritySettings)
    server, names = folder / "server", list(hosts) or settings.server
    for host in names:
        authority.general_name(host)
    if hosts:
        text = texts.authority_settings(settings.federation, names, settings.port)
        write_text(folder / "authority" / AUTHORITY, text)
    renewed = authority.renew(folder / "authority", settings.federation)
    if renewed:
        for copy in (server, *(folder / "sites").glob("*/"), *(folder / "submitters").glob("*/")):
            shutil.copyfile(folder / "authority" / authority.CERTIFICATE, copy / CA)
    # The key first: with the old certificate it fits nothing, and a server that starts in between says so.
    key, new = new_key(), beside(server / SERVER_KEY)
    write_key(new, key)
    certificate = authority.issue(folder / "authority", key, names)
    new.replace(server / SERVER_KEY)
    write_text(server / SERVER_CERTIFICATE, certificate.decode())
    return renewed


def server_folder(folder: Path) -> Path:
    """Return the server's folder of a federation, or the folder itself where it is that.

    Raises:
        Refusal: It is neither.
    """
    for each in (folder, folder / "server"):
        if (each / SERVER).is_file():
            return each
    raise Refusal(f"{folder} is no server's folder: it has no {SERVER}.", remedy="Make one: umbel federate init")


def kind_of(folder: Path) -> str:
    """Return whose folder it is: server, site, submitter.

    Raises:
        Refusal: It is nobody's.
    """
    kinds = {SERVER: "server", SITE: "site", SUBMIT: "submitter", f"server/{SERVER}": "server"}
    for file, kind in kinds.items():
        if (folder / file).is_file():
            return kind
    if (folder / REQUEST).is_file():
        raise Refusal(
            f"{folder} is not admitted yet.", remedy=f"Send {REQUEST}, and copy the files that come back into it."
        )
    raise Refusal(
        f"{folder} is no folder of a federation: it has no {SERVER}, {SITE} or {SUBMIT}.",
        remedy="Make one: umbel federate init",
    )


def submitter_key(folder: Path, name: str) -> Path:
    """Return where the key of a submitter is."""
    return folder / f"{name}.key"


def _fill_authority(folder: Path, plan: Plan) -> None:
    _new(folder)
    authority.make(folder, plan.federation)
    write_text(folder / AUTHORITY, texts.authority_settings(plan.federation, list(plan.server), plan.port))


def _fill_server(folder: Path, signer: Path, plan: Plan, register: Register) -> None:
    _new(folder)
    key = new_key()
    write_key(folder / SERVER_KEY, key)
    write_text(folder / SERVER_CERTIFICATE, authority.issue(signer, key, plan.server).decode())
    shutil.copyfile(signer / authority.CERTIFICATE, folder / CA)
    write_register(folder / SITES, register)
    write_text(folder / SERVER, texts.server_settings(plan.federation, plan.port, plan.control_port))
    write_text(folder / README, texts.readme_server(plan.federation, str(Address(plan.server[0], plan.port))))


def _fill_site(folder: Path, whole: Path, register: Register, name: str, has_key: bool) -> None:
    """Fill a site's folder with all but its key."""
    _new(folder)
    settings = read_settings(whole / "authority" / AUTHORITY, AuthoritySettings)
    address = str(Address(settings.server[0], settings.port))
    shutil.copyfile(whole / "authority" / authority.CERTIFICATE, folder / CA)
    write_text(folder / SITE, texts.site_settings(name, settings.federation, address, register.sites[name].clients))
    write_text(folder / TRUSTED, texts.trusted({key: each.key for key, each in register.submitters.items()}))
    write_text(folder / POLICY, texts.policy())
    write_text(folder / README, texts.readme_site(name, settings.federation, has_key))


def _fill_submitter(folder: Path, whole: Path, plan: Plan, name: str) -> None:
    """Fill a submitter's folder with all but the key."""
    _new(folder)
    shutil.copyfile(whole / "authority" / authority.CERTIFICATE, folder / CA)
    here = plan.server[0] in authority.LOOPBACK  # all on one machine: no tunnel
    ssh = plan.ssh or ("" if here else plan.server[0])
    write_text(folder / SUBMIT, texts.submit_settings(name, plan.federation, ssh, plan.control_port))
    write_text(folder / README, texts.readme_submitter(name, plan.federation))


def _vacant(folder: Path) -> Path:
    """Return a folder's path, after what a revoked key of that name had there has got another name."""
    if folder.exists():
        day = time.strftime("%Y-%m-%d")
        names = (f"{folder.name}.revoked-{day}" + (f"-{number}" if number else "") for number in count())
        folder.rename(next(folder.with_name(name) for name in names if not folder.with_name(name).exists()))
    return folder


def _new(folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    lock_down(folder)
    lock_down(folder.parent)


def _made(folder: Path, fill: Callable[[Path], None]) -> Path:
    """Make a folder whole or not at all."""
    folder = folder.expanduser().absolute()
    if folder.exists():
        raise Refusal(f"{folder} is there already.", remedy="Name another folder; nothing is overwritten.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    part = beside(folder)
    part.mkdir(mode=0o700)
    try:
        fill(part)
        part.rename(folder)
    except BaseException:
        shutil.rmtree(part, ignore_errors=True)
        raise
    return folder

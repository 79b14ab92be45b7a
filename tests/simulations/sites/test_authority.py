"""The authority's certificates: what they say, how long they are good, and that TLS takes them and no others."""

from __future__ import annotations

import datetime as dt
import socket
import ssl
import stat
import threading
from pathlib import Path

import pytest
from cryptography import x509

from umbel.core.refusal import Refusal
from umbel.core.wire.identity import new_key, public_text, write_key
from umbel.simulations.sites import authority
from umbel.simulations.sites.diagnose import unreachable
from umbel.simulations.sites.names import Address


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("authority")
    authority.make(folder, "hospitals")
    return folder


def server(folder: Path, signer: Path, hosts: list[str], days: float = authority.SERVER_DAYS) -> Path:
    """A server's key and certificate in a folder."""
    folder.mkdir()
    key = new_key()
    write_key(folder / "server.key", key)
    (folder / "server.pem").write_bytes(authority.issue(signer, key, hosts, days))
    return folder


def test_the_key_is_for_its_owner_alone_and_the_certificate_can_sign_no_authority(made: Path) -> None:
    assert stat.S_IMODE((made / "ca.key").stat().st_mode) == 0o600
    certificate = x509.load_pem_x509_certificate((made / "ca.pem").read_bytes())
    constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
    assert constraints.critical
    assert (constraints.value.ca, constraints.value.path_length) == (True, 0)
    assert 5 * 365 - 1 < authority.certificate_times(made / "ca.pem").days_left() < 5 * 365


def test_a_servers_certificate_names_its_hosts_and_loopback_and_lasts_a_year(made: Path, tmp_path: Path) -> None:
    folder = server(tmp_path / "server", made, ["fl.example.org", "10.0.0.5", "fd00::5"])
    hosts = authority.hosts_of(folder / "server.pem")
    assert hosts == ["fl.example.org", "localhost", "10.0.0.5", "fd00::5", "127.0.0.1", "::1"]
    assert 364 < authority.certificate_times(folder / "server.pem").days_left() < 365
    certificate = x509.load_pem_x509_certificate((folder / "server.pem").read_bytes())
    usage = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usage) == [x509.oid.ExtendedKeyUsageOID.SERVER_AUTH]
    assert authority.verifies(made / "ca.pem", folder / "server.pem")


def test_a_certificate_is_of_its_own_authority_only(made: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    authority.make(tmp_path / "other", "hospitals")
    folder = server(tmp_path / "server", made, ["localhost"])
    assert not authority.verifies(tmp_path / "other" / "ca.pem", folder / "server.pem")


@pytest.mark.parametrize("host", ["", "a b", "-x.org", "fl..org", "1.2.3", "x" * 64 + ".org", "fl.example.org:9092"])
def test_what_is_no_host_is_refused(host: str) -> None:
    with pytest.raises(Refusal, match="no name of a host"):
        authority.general_name(host)


def test_a_server_does_not_outlive_its_authority_and_an_ended_one_signs_nothing(tmp_path: Path) -> None:
    authority.make(tmp_path, "short", days=10)
    folder = server(tmp_path / "server", tmp_path, ["localhost"])
    ends = [authority.certificate_times(file).ends for file in (tmp_path / "ca.pem", folder / "server.pem")]
    assert ends[0] == ends[1]
    (tmp_path / "ended").mkdir()
    authority.make(tmp_path / "ended", "ended", days=0.01)  # began an hour ago
    with pytest.raises(Refusal, match="ended on"):
        authority.issue(tmp_path / "ended", new_key(), ["localhost"])


def test_an_authority_that_is_nearly_over_goes_on_with_its_key(tmp_path: Path) -> None:
    authority.make(tmp_path, "hospitals", days=300)
    folder = server(tmp_path / "server", tmp_path, ["localhost"])
    before = (tmp_path / "ca.pem").read_bytes()
    (tmp_path / "old.pem").write_bytes(before)
    assert authority.renew(tmp_path, "hospitals")
    assert (tmp_path / "ca.pem").read_bytes() != before
    assert authority.certificate_times(tmp_path / "ca.pem").days_left() > 5 * 365 - 2
    assert not authority.renew(tmp_path, "hospitals")  # one that is fresh is left alone
    # Sites with the old certificate take new servers, and those with the new one old servers.
    new = server(tmp_path / "new", tmp_path, ["localhost"])
    for certificate in (folder / "server.pem", new / "server.pem"):
        assert authority.verifies(tmp_path / "old.pem", certificate)
        assert authority.verifies(tmp_path / "ca.pem", certificate)


def test_the_public_key_of_a_certificate_is_the_servers(made: Path, tmp_path: Path) -> None:
    key = new_key()
    (tmp_path / "server.pem").write_bytes(authority.issue(made, key, ["localhost"]))
    assert authority.public_of(tmp_path / "server.pem") == public_text(key)
    assert authority.public_of(tmp_path / "server.pem") != public_text(new_key())


def test_days_left_is_negative_when_it_is_over() -> None:
    now = dt.datetime(2026, 3, 1, tzinfo=dt.UTC)
    times = authority.Times(now - dt.timedelta(days=9), now - dt.timedelta(days=2))
    assert times.days_left(now) == -2


class Listener:
    """A server on loopback that accepts one connection after the other: with TLS, or saying what it is told."""

    def __init__(self, folder: Path | None, says: bytes = b"") -> None:
        self._socket = socket.create_server(("", 0))
        self.address = Address("127.0.0.1", self._socket.getsockname()[1])
        self._context: ssl.SSLContext | None = None
        self._says = says
        if folder is not None:
            self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self._context.load_cert_chain(folder / "server.pem", folder / "server.key")
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        while True:
            try:
                taken, _ = self._socket.accept()
            except OSError:
                return
            with taken:
                try:
                    if self._context is None:
                        taken.sendall(self._says)
                        taken.recv(1000)
                    else:
                        with self._context.wrap_socket(taken, server_side=True) as secured:
                            secured.recv(1)
                except OSError:
                    continue

    def close(self) -> None:
        self._socket.close()


def why(folder: Path | None, ca: Path, says: bytes = b"") -> str:
    listener = Listener(folder, says)
    try:
        return unreachable(listener.address, ca)
    finally:
        listener.close()


def test_a_server_of_the_authority_is_taken(made: Path, tmp_path: Path) -> None:
    assert why(server(tmp_path / "server", made, ["127.0.0.1"]), made / "ca.pem") == ""


def test_each_reason_why_a_server_is_not_taken_is_said_in_words(made: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    authority.make(tmp_path / "other", "hospitals")
    stranger = server(tmp_path / "stranger", tmp_path / "other", ["127.0.0.1"])
    assert "another authority than ca.pem" in why(stranger, made / "ca.pem")
    ended = server(tmp_path / "ended", made, ["127.0.0.1"], days=1 / 48)  # half an hour, and it began an hour ago
    assert "has expired" in why(ended, made / "ca.pem")
    assert "speaks no TLS" in why(None, made / "ca.pem", b"HTTP/1.0 400 Bad Request\r\n\r\n")


def test_a_certificate_for_another_address_is_named(tmp_path: Path, made: Path) -> None:
    listener = Listener(server(tmp_path / "elsewhere", made, ["fl.example.org"]))
    try:
        # 127.0.0.2 is this machine too, and stands in no certificate.
        reason = unreachable(Address("127.0.0.2", listener.address.port), made / "ca.pem")
    finally:
        listener.close()
    assert "for another address" in reason


def test_a_closed_port_and_an_unknown_name_are_named(made: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    assert "is closed" in unreachable(Address("127.0.0.1", port), made / "ca.pem")
    assert "not known here (DNS" in unreachable(Address("no-such-host.invalid", 9092), made / "ca.pem")


def test_a_proxy_that_grpc_would_use_is_named(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", "")
    reason = unreachable(Address("no-such-host.invalid", 9092), made / "ca.pem")
    assert "http://proxy.example:3128" in reason
    assert "no_proxy=no-such-host.invalid" in reason
    monkeypatch.setenv("no_proxy", "no-such-host.invalid")
    assert "proxy" not in unreachable(Address("no-such-host.invalid", 9092), made / "ca.pem")

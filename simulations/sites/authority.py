"""A certificate authority of one federation: it says which server is the right one (RFC 5280).

Sites know the authority's certificate and so refuse any other server; sites themselves are known by their keys
(`umbel.core.wire.identity`), not by certificates. All keys are on P-384. The authority's key is needed to renew the
server's certificate, about once a year, and belongs on no machine that others reach.
"""

from __future__ import annotations

import datetime as dt
import ipaddress
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from umbel.core.files import write_bytes
from umbel.core.refusal import Refusal
from umbel.core.wire.identity import PrivateKey, PublicKey, new_key, read_key, write_key

AUTHORITY_DAYS, SERVER_DAYS = 5 * 365, 365
SOON_DAYS = 30  # before its end a certificate is spoken of
_AUTHORITY_SOON_DAYS = 400  # a server's certificate must not outlive its authority
_EARLIER = dt.timedelta(hours=1)  # clocks of sites may be behind
LOOPBACK = ("localhost", "127.0.0.1", "::1")  # the Control API, and the ServerApp on the server's own machine
_LABEL = re.compile(r"(?!-)[A-Za-z0-9-]{1,63}(?<!-)")
KEY, CERTIFICATE = "ca.key", "ca.pem"


@dataclass(frozen=True)
class Times:
    """When a certificate is good.

    Attributes:
        begins: From when.
        ends: Until when.
    """

    begins: dt.datetime
    ends: dt.datetime

    def days_left(self, now: dt.datetime | None = None) -> float:
        """Return for how many days it is good; negative when it is over."""
        return (self.ends - (now or dt.datetime.now(dt.UTC))) / dt.timedelta(days=1)


def make(folder: Path, federation: str, days: float = AUTHORITY_DAYS) -> None:
    """Make an authority: `ca.key`, which its owner alone can read, and `ca.pem`.

    Args:
        folder: Where.
        federation: Name of the federation.
        days: How long its certificate is good.
    """
    key = new_key()
    write_key(folder / KEY, key)
    write_bytes(folder / CERTIFICATE, _pem(_authority(key, federation, days)))


def renew(folder: Path, federation: str, days: float = AUTHORITY_DAYS) -> bool:
    """Give an authority that is nearly over a new certificate of the same key; return whether it needed one.

    Server certificates stay good under both. Each site needs the new `ca.pem` before the old one ends.
    """
    if certificate_times(folder / CERTIFICATE).days_left() > _AUTHORITY_SOON_DAYS:
        return False
    write_bytes(folder / CERTIFICATE, _pem(_authority(read_key(folder / KEY), federation, days)))
    return True


def issue(authority: Path, key: PrivateKey | PublicKey, hosts: Sequence[str], days: float = SERVER_DAYS) -> bytes:
    """Return a server's certificate, PEM, for names and addresses, and for loopback.

    Args:
        authority: The authority's folder.
        key: The server's key.
        hosts: Names and addresses by which sites reach it.
        days: How long it is good; never longer than the authority.

    Raises:
        Refusal: A host is no name and no address, or the authority is over.
    """
    certificate = x509.load_pem_x509_certificate((authority / CERTIFICATE).read_bytes())
    signer = read_key(authority / KEY)
    now = dt.datetime.now(dt.UTC)
    if certificate.not_valid_after_utc <= now:
        raise Refusal(f"The authority {authority} ended on {certificate.not_valid_after_utc:%Y-%m-%d}.")
    public = key.public_key() if isinstance(key, PrivateKey) else key
    begins = max(now - _EARLIER, certificate.not_valid_before_utc)
    names = [*hosts, *(host for host in LOOPBACK if host not in hosts)]
    builder = (
        x509.CertificateBuilder()
        .subject_name(_name(hosts[0]))
        .issuer_name(certificate.subject)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(min(begins + dt.timedelta(days=days), certificate.not_valid_after_utc))
        .add_extension(x509.SubjectAlternativeName([general_name(host) for host in names]), critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key()), critical=False)
    )
    return _pem(builder.sign(signer, hashes.SHA384()))


def general_name(host: str) -> x509.GeneralName:
    """Return a host as a certificate says it.

    Raises:
        Refusal: It is neither a name of the domain name system nor an address.
    """
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        labels = host.split(".")
        numeric = all(label.isdigit() for label in labels)
        if len(host) > 253 or numeric or not all(_LABEL.fullmatch(label) for label in labels):
            raise Refusal(
                f"{host!r} is no name of a host and no address.", key="--server", remedy="Such as fl.example.org."
            ) from None
        return x509.DNSName(host)


def certificate_times(path: Path) -> Times:
    """Return when a certificate is good.

    Raises:
        Refusal: There is none, or it cannot be read.
    """
    certificate = _read(path)
    return Times(certificate.not_valid_before_utc, certificate.not_valid_after_utc)


def hosts_of(path: Path) -> list[str]:
    """Return the names and addresses that a server's certificate is for, loopback among them."""
    names = _read(path).extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [str(value) for kind in (x509.DNSName, x509.IPAddress) for value in names.get_values_for_type(kind)]


def public_of(path: Path) -> str:
    """Return the public key that a certificate is of, PEM."""
    public = _read(path).public_key()
    return public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()


def verifies(authority: Path, certificate: Path) -> bool:
    """Say whether a certificate is of an authority, whenever it is good."""
    try:
        _read(certificate).verify_directly_issued_by(_read(authority))
    except Exception:  # noqa: BLE001 - each kind of key has errors of its own
        return False
    return True


def lock_down(folder: Path) -> None:
    """Let nobody but its owner look into a folder."""
    os.chmod(folder, 0o700)  # noqa: PTH101


def _read(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Refusal(f"The certificate {path} cannot be read: {error}.") from error


def _authority(key: PrivateKey, federation: str, days: float) -> x509.Certificate:
    begins = dt.datetime.now(dt.UTC) - _EARLIER
    name = _name(f"umbel federation {federation}")
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(begins)
        .not_valid_after(begins + dt.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    return builder.sign(key, hashes.SHA384())


def _usage(signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def _name(common: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common[:64])])


def _pem(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(serialization.Encoding.PEM)

"""Who somebody is: a key pair on the curve P-384, as Flower's SuperLink registers them, and what it has signed.

Signatures are ECDSA (FIPS 186-5) with SHA-384, in DER; of the two values of s that fit, the smaller is the signature.
What is signed is a purpose and a mapping in one canonical form
of JSON, so that a signature for one purpose is none for another. A node that is greeted signs what it was asked, a
challenge that was never given before, with what it claims, so that nobody can play its answer again or claim more.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature, encode_dss_signature

from umbel.core.refusal import Refusal

PrivateKey = ec.EllipticCurvePrivateKey
PublicKey = ec.EllipticCurvePublicKey

GREETING = "greeting"  # the purpose of what a node signs when it is greeted
_MAKE = "Make one: openssl ecparam -name secp384r1 -genkey -noout | openssl pkcs8 -topk8 -nocrypt -out FILE"
# Of the points of P-384 (SEC 2, section 2.5.1). With s, n - s fits as well: only what is at most n / 2 is taken.
_ORDER = 0xFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFFC7634D81F4372DDF581A0DB248B0A77AECEC196ACCC52973
_HALF = _ORDER // 2
_MOST_BYTES = 16_384  # of a key's file or text; one of P-384 has a few hundred


def new_key() -> PrivateKey:
    """Return a new private key."""
    return ec.generate_private_key(ec.SECP384R1())


def write_key(path: Path, key: PrivateKey) -> None:
    """Write a private key as PEM (PKCS 8, no password) that its owner alone can read; nothing is overwritten.

    Raises:
        Refusal: The file is there already.
        OSError: It cannot be written.
    """
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        raise Refusal(f"{path} is there already: a key is never overwritten.", remedy="Name another file.") from None
    with os.fdopen(descriptor, "wb") as file:
        file.write(key_text(key).encode())
        file.flush()
        os.fsync(file.fileno())


def read_key(path: Path) -> PrivateKey:
    """Read a private key.

    Raises:
        Refusal: The file is not there, others can read it, or it is no private key on P-384.
    """
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            content = file.read(_MOST_BYTES)
    except OSError as error:
        raise Refusal(f"The key {path} cannot be read: {error.strerror}.") from error
    mode = stat.S_IMODE(status.st_mode)
    # As PostgreSQL does: a secret that root mounts for a group of one, as Kubernetes does, is nobody else's.
    lent_by_root = status.st_uid == 0 and os.geteuid() != 0
    if mode & (0o037 if lent_by_root else 0o077):
        raise Refusal(
            f"The private key {path} can be read by others than its owner (mode {mode:03o}).",
            remedy=f"Once nobody else can have read it: chmod 600 {path}",
        )
    return key_of_text(content.decode("ascii", "replace"), str(path))


def key_text(key: PrivateKey) -> str:
    """Return a private key as PEM (PKCS 8, no password): for a file, or a pipe, that nobody else reads."""
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    return key.private_bytes(pem, form, serialization.NoEncryption()).decode()


def key_of_text(text: str, name: str = "this") -> PrivateKey:
    """Return the private key that a PEM text says.

    Args:
        text: The text.
        name: What it is called in refusals.

    Raises:
        Refusal: It says none, or one of another kind.
    """
    try:
        key = serialization.load_pem_private_key(text.encode(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise Refusal(f"{name} is no private key in PEM without a password: {error}.", remedy=_MAKE) from error
    if not isinstance(key, PrivateKey) or not isinstance(key.curve, ec.SECP384R1):
        raise Refusal(f"{name} is no key on the curve P-384.", remedy=_MAKE)
    return key


def public_text(key: PrivateKey | PublicKey) -> str:
    """Return the public half of a key as PEM (SubjectPublicKeyInfo)."""
    return _public(key, serialization.Encoding.PEM).decode()


def read_public(text: str) -> PublicKey:
    """Return the public key that a PEM text says.

    Raises:
        Refusal: It says none, or one of another kind.
    """
    try:
        if len(text) > _MOST_BYTES:
            raise ValueError(f"{len(text)} characters are too many")
        key = serialization.load_pem_public_key(text.encode())
    except (ValueError, UnsupportedAlgorithm) as error:
        raise Refusal(f"This is no public key in PEM: {error}.") from error
    if not isinstance(key, PublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise Refusal("This public key is not on the curve P-384.")
    return key


def fingerprint(key: PrivateKey | PublicKey) -> str:
    """Return the name of a key: SHA256: and the base64, without =, of the SHA-256 of its public half in DER."""
    digest = hashlib.sha256(_public(key, serialization.Encoding.DER)).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def _public(key: PrivateKey | PublicKey, encoding: serialization.Encoding) -> bytes:
    public = key.public_key() if isinstance(key, PrivateKey) else key
    return public.public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo)


def sign(key: PrivateKey, purpose: str, content: Mapping[str, Any]) -> str:
    """Return the signature, in base64, of a mapping that JSON can say.

    Args:
        key: Who signs.
        purpose: What for, as "greeting"; without a line break.
        content: What is signed.
    """
    r, s = decode_dss_signature(key.sign(_signed(purpose, content), ec.ECDSA(hashes.SHA384())))
    return base64.b64encode(encode_dss_signature(r, min(s, _ORDER - s))).decode()


def verify(public: PublicKey, purpose: str, content: Mapping[str, Any], signature: str) -> bool:
    """Say whether a signature is of this key, for this purpose and of this content; a malformed one is not."""
    try:
        decoded = base64.b64decode(signature, validate=True)
        if base64.b64encode(decoded).decode() != signature or decode_dss_signature(decoded)[1] > _HALF:
            return False  # the same signature written in another way
        public.verify(decoded, _signed(purpose, content), ec.ECDSA(hashes.SHA384()))
    except (InvalidSignature, binascii.Error, ValueError):
        return False
    return True


def digest(purpose: str, content: Mapping[str, Any]) -> str:
    """Return the SHA-256, in hexadecimal, of what `sign` signs: a name of it that no signature of it can change."""
    return hashlib.sha256(_signed(purpose, content)).hexdigest()


def greeting_signature(
    key: PrivateKey, asked: Mapping[str, Any], node: int, answer: Mapping[str, Any]
) -> dict[str, str]:
    """Return what a node adds to its answer to a greeting, as `site`, so that the server knows whose it is.

    Args:
        key: The site's key.
        asked: The greeting.
        node: The node's id.
        answer: The answer.
    """
    content = greeting_content(str(asked.get("challenge", "")), str(asked.get("run", "")), node, answer)
    return {"key": fingerprint(key), "signature": sign(key, GREETING, content)}


def greeting_content(challenge: str, run: str, node: int, answer: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a site signs of a greeting.

    Args:
        challenge: The greeting's challenge.
        run: The run that it is for.
        node: Id of the node that was greeted.
        answer: Its answer, of which the claims are signed.
    """
    claimed = {name: answer.get(name) for name in ("partitions", "config_hash", "examples")}
    return {"challenge": challenge, "run": run, "node_id": node, **claimed}


def _signed(purpose: str, content: Mapping[str, Any]) -> bytes:
    if "\n" in purpose:
        raise ValueError(f"a purpose has no line break: {purpose!r}")
    canonical = json.dumps(content, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
    return b"umbel " + purpose.encode() + b"\n" + canonical.encode()

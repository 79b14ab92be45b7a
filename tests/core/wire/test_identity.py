"""Keys and signatures: what OpenSSL makes and checks, and what is refused."""

from __future__ import annotations

import base64
import hashlib
import shutil
import subprocess

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from umbel.core.refusal import Refusal
from umbel.core.wire.identity import fingerprint, new_key, public_text, read_key, read_public, sign, verify, write_key

CONTENT = {"challenge": "00ff", "partitions": [0, 1], "examples": {"0": 3}, "site": "Süd"}


def test_a_key_written_and_read_again_is_the_same_and_its_owners_alone(tmp_path):
    key = new_key()
    write_key(tmp_path / "site.key", key)
    assert (tmp_path / "site.key").stat().st_mode & 0o777 == 0o600
    assert fingerprint(read_key(tmp_path / "site.key")) == fingerprint(key)
    assert fingerprint(read_public(public_text(key))) == fingerprint(key.public_key())
    with pytest.raises(Refusal, match="never overwritten"):
        write_key(tmp_path / "site.key", new_key())
    assert fingerprint(read_key(tmp_path / "site.key")) == fingerprint(key)


def test_a_key_that_others_can_read_is_refused(tmp_path):
    write_key(tmp_path / "site.key", new_key())
    (tmp_path / "site.key").chmod(0o640)
    with pytest.raises(Refusal, match=r"can be read by others than its owner \(mode 640\)"):
        read_key(tmp_path / "site.key")


def pem(key):
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"no key", "no private key in PEM"),
        (pem(ec.generate_private_key(ec.SECP256R1())), "no key on the curve P-384"),
        (pem(ed25519.Ed25519PrivateKey.generate()), "no key on the curve P-384"),
        (None, "No such file"),
    ],
    ids=["text", "P-256", "Ed25519", "absent"],
)
def test_what_is_no_private_key_is_refused(tmp_path, content, reason):
    path = tmp_path / "site.key"
    if content is not None:
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(Refusal, match=reason):
        read_key(path)


@pytest.mark.parametrize(
    "text",
    ["", "ssh-ed25519 AAAA", "x" * 20_000, public_text(new_key())[:80], pem(new_key()).decode()],
    ids=["empty", "ssh", "long", "cut", "private"],
)
def test_what_is_no_public_key_is_refused(text):
    with pytest.raises(Refusal, match="no public key"):
        read_public(text)


def test_a_public_key_on_another_curve_is_refused():
    public = ec.generate_private_key(ec.SECP256R1()).public_key()
    text = public.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(Refusal, match="not on the curve P-384"):
        read_public(text)


def test_a_signature_is_of_one_key_one_purpose_and_one_content():
    key, other = new_key(), new_key()
    signature = sign(key, "greeting", CONTENT)
    public = key.public_key()
    assert verify(public, "greeting", dict(reversed(CONTENT.items())), signature)
    assert not verify(other.public_key(), "greeting", CONTENT, signature)
    assert not verify(public, "run", CONTENT, signature)
    assert not verify(public, "greeting", {**CONTENT, "partitions": [0, 1, 2]}, signature)
    for malformed in ("", "=", signature[:-4], "ü", "AAAA", signature + "\n"):
        assert not verify(public, "greeting", CONTENT, malformed)
    with pytest.raises(ValueError, match="line break"):
        sign(key, "greeting\n{}", CONTENT)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl")
def test_openssl_finds_the_same_fingerprint_and_accepts_the_signature(tmp_path):
    key = new_key()
    (tmp_path / "public.pem").write_text(public_text(key))
    der = subprocess.run(
        ["openssl", "pkey", "-pubin", "-in", "public.pem", "-outform", "DER"],
        cwd=tmp_path,
        capture_output=True,
        check=True,
    ).stdout
    assert fingerprint(key) == "SHA256:" + base64.b64encode(hashlib.sha256(der).digest()).decode().rstrip("=")
    text = '{"challenge":"00ff","examples":{"0":3},"partitions":[0,1],"site":"S\\u00fcd"}'  # sorted, no spaces, ASCII
    (tmp_path / "signed").write_bytes(b"umbel greeting\n" + text.encode())
    (tmp_path / "signature").write_bytes(base64.b64decode(sign(key, "greeting", CONTENT)))
    checked = subprocess.run(
        ["openssl", "dgst", "-sha384", "-verify", "public.pem", "-signature", "signature", "signed"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert checked.stdout.strip() == "Verified OK"

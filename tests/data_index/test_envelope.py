"""Signed envelopes: what was signed comes out, and no other bytes do."""

from __future__ import annotations

import base64
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from data_index import envelope
from data_index.envelope import Signer
from data_index.errors import ConfigurationError, SignatureError

TYPE = "application/vnd.in-toto+json"
SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
TRUSTED = {SIGNER.key_id: SIGNER.public}
PAYLOAD = '{"a":"ü","n":1}'.encode()
GOOD = envelope.sign(TYPE, PAYLOAD, SIGNER)


def test_the_payload_comes_out() -> None:
    assert envelope.open_(GOOD, TYPE, TRUSTED) == PAYLOAD
    assert envelope.signed_by(GOOD) == SIGNER.key_id


def test_an_empty_payload_is_one_too() -> None:
    assert envelope.open_(envelope.sign("", b"", SIGNER), "", TRUSTED) == b""


def test_what_is_signed_is_the_encoding_of_the_specification() -> None:
    body = json.loads(envelope.sign("http://example.com/HelloWorld", b"hello world", SIGNER))
    signed = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    SIGNER.public.verify(base64.b64decode(body["signatures"][0]["sig"]), signed)


def test_signing_twice_gives_the_same_bytes() -> None:
    assert envelope.sign(TYPE, PAYLOAD, SIGNER) == GOOD


def test_every_flipped_bit_is_refused() -> None:
    for at in range(len(GOOD) * 8):
        bad = bytearray(GOOD)
        bad[at // 8] ^= 1 << at % 8
        with pytest.raises(SignatureError):
            envelope.open_(bytes(bad), TYPE, TRUSTED)


@pytest.mark.parametrize("length", range(0, len(GOOD), 7))
def test_a_cut_one_is_refused(length: int) -> None:
    with pytest.raises(SignatureError):
        envelope.open_(GOOD[:length], TYPE, TRUSTED)


@pytest.mark.parametrize(
    "data", [b"[" * 100_000, b'{"signatures":9}', b"1" * 9999, b"\xff", b"null", b'{"a":NaN}']
)
def test_other_bytes_are_refused(data: bytes) -> None:
    with pytest.raises(SignatureError):
        envelope.open_(data, TYPE, TRUSTED)


def test_another_type_or_key_is_refused() -> None:
    other = Signer(Ed25519PrivateKey.generate())
    for kind, trusted in (
        ("application/json", TRUSTED),
        (TYPE, {}),
        (TYPE, {other.key_id: other.public}),
        (TYPE, {SIGNER.key_id: other.public}),
    ):
        with pytest.raises(SignatureError):
            envelope.open_(GOOD, kind, trusted)


def test_keys_survive_as_pem_and_do_not_show() -> None:
    pem = envelope.private_pem(SIGNER.private)
    assert envelope.read_private(pem, "It").key_id == SIGNER.key_id
    public = envelope.read_public(envelope.public_pem(SIGNER.public), "It")
    assert envelope.key_id(public) == SIGNER.key_id
    assert "Ed25519PrivateKey" not in repr(SIGNER)
    for bad in (b"", b"nonsense", envelope.public_pem(SIGNER.public)):
        with pytest.raises(ConfigurationError, match="It is no Ed25519"):
            envelope.read_private(bad, "It")
    for bad in (b"", b"nonsense", pem):
        with pytest.raises(ConfigurationError, match="It is no Ed25519"):
            envelope.read_public(bad, "It")

"""Signed bytes: a DSSE envelope with one Ed25519 signature, and the keys to make and open it.

https://github.com/secure-systems-lab/dsse, protocol v1.0.2. Among the encodings that DSSE allows
there is one here, canonical JSON, and no other is opened: no bit of a file can change unnoticed.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from data_index.errors import ConfigurationError, SignatureError
from data_index.storage import canonical_json, sha256


@dataclass(frozen=True)
class Signer:
    """A private key that signs.

    Attributes:
        private: The key.
    """

    private: Ed25519PrivateKey = field(repr=False)

    @cached_property
    def public(self) -> Ed25519PublicKey:
        """The public half."""
        return self.private.public_key()

    @cached_property
    def key_id(self) -> str:
        """See `key_id`."""
        return key_id(self.public)


def key_id(public: Ed25519PublicKey) -> str:
    """Name of a key: sha256 in hex of the 32 raw bytes of its public half."""
    return sha256(public.public_bytes(Encoding.Raw, PublicFormat.Raw))


def sign(payload_type: str, payload: bytes, signer: Signer) -> bytes:
    """Put bytes into a signed envelope.

    Args:
        payload_type: Says how to read the payload; it is signed too.
        payload: The bytes.
        signer: Signs them.
    """
    signature = signer.private.sign(_to_sign(payload_type, payload))
    return _encode(payload_type, payload, signer.key_id, signature)


def open_(envelope: bytes, payload_type: str, trusted: Mapping[str, Ed25519PublicKey]) -> bytes:
    """The payload of an envelope.

    Args:
        envelope: As `sign` makes it, byte by byte.
        payload_type: The only type to take.
        trusted: Keys whose signature counts, by their id.

    Raises:
        SignatureError: The envelope is of another form or type, or not signed by a trusted key.
    """
    key, payload, signature = _checked(envelope, payload_type)
    public = trusted.get(key)
    if public is None:
        raise SignatureError(
            "It is signed by a key that is not trusted.", "Get the public key of who signed it."
        )
    try:
        public.verify(signature, _to_sign(payload_type, payload))
    except InvalidSignature:
        raise SignatureError(
            "Its signature is wrong: it was changed since it was signed."
        ) from None
    return payload


def unchecked(envelope: bytes, payload_type: str) -> bytes:
    """The payload of an envelope of the right form and type, whoever signed it.

    Raises:
        SignatureError: The envelope is of another form or type.
    """
    return _checked(envelope, payload_type)[1]


def signed_by(envelope: bytes) -> str:
    """Key id that an envelope names, unchecked.

    Raises:
        SignatureError: It is no envelope.
    """
    return _parts(envelope)[0]


def private_pem(private: Ed25519PrivateKey) -> bytes:
    """A private key as unencrypted PKCS #8 PEM."""
    return private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def public_pem(public: Ed25519PublicKey) -> bytes:
    """A public key as PEM."""
    return public.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def read_private(pem: bytes, where: str) -> Signer:
    """Read a private key.

    Args:
        pem: PKCS #8 PEM without a passphrase.
        where: Names its place in an error.

    Raises:
        ConfigurationError: It is no such key.
    """
    try:
        found = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, Ed25519PrivateKey):
        raise ConfigurationError(
            f"{where} is no Ed25519 private key in PEM without a passphrase.",
            "Restore the right value.",
        )
    return Signer(found)


def read_public(pem: bytes, where: str) -> Ed25519PublicKey:
    """Read a public key in PEM.

    Args:
        pem: The key.
        where: Names its place in an error.

    Raises:
        ConfigurationError: It is no such key.
    """
    try:
        found = load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        found = None
    if not isinstance(found, Ed25519PublicKey):
        raise ConfigurationError(
            f"{where} is no Ed25519 public key in PEM.", "Name the file of the public key."
        )
    return found


def _to_sign(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding: no two pairs of type and payload share one."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %s %d %s" % (len(kind), kind, len(payload), payload)


def _encode(payload_type: str, payload: bytes, key: str, signature: bytes) -> bytes:
    return canonical_json(
        {
            "payload": base64.b64encode(payload).decode(),
            "payloadType": payload_type,
            "signatures": [{"keyid": key, "sig": base64.b64encode(signature).decode()}],
        }
    )


def _checked(envelope: bytes, payload_type: str) -> tuple[str, bytes, bytes]:
    """Key id, payload and signature of an envelope that is of this type and in the one encoding."""
    key, payload, signature = _parts(envelope)
    if _encode(payload_type, payload, key, signature) != envelope:
        raise SignatureError(
            "It is no envelope of the expected form and type.",
            "Name the file as it was handed out.",
        )
    return key, payload, signature


def _parts(envelope: bytes) -> tuple[str, bytes, bytes]:
    """Key id, payload and signature; what else the bytes say is for the caller to compare."""
    try:
        found = json.loads(envelope.decode())
        (entry,) = found["signatures"]
        key = entry["keyid"]
        payload = base64.b64decode(found["payload"], validate=True)
        signature = base64.b64decode(entry["sig"], validate=True)
        if isinstance(key, str) and key.isascii():
            return key, payload, signature
    except (ValueError, TypeError, LookupError, RecursionError):
        pass
    raise SignatureError("It is no signed envelope.", "Name the file as it was handed out.")

"""No bytes but those that were issued pass for a certificate."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_index import envelope
from data_index.storage import canonical_json
from sisa import certificate_check, statement
from sisa.errors import ExactnessError
from sisa.statement import PAYLOAD_TYPE

from .helpers import OTHER, Body, Issued, b64, parts

ORDER = 2**252 + 27742317777372353535851937790883648493
"""Order of Ed25519's group (RFC 8032, section 5.1)."""


def checked(data: bytes, trusted: dict[str, Any], folder: Path) -> dict[str, bool | None]:
    """Outcome of each offline check of a certificate's bytes, and of the whole."""
    file = folder / "given.json"
    file.write_bytes(data)
    done = certificate_check.verify(file, trusted)
    assert done.exit_code == (0 if done.valid else 4)
    return {"valid": done.valid, **{c.name: c.passed for c in done.checks}}


def test_the_good_one_is_valid(issued: Issued, tmp_path: Path) -> None:
    for place in (1, 2, 3):
        outcome = checked(issued.data(place), issued.trusted, tmp_path)
        assert outcome == {"valid": True, "signature": True, "statement": True}


def test_every_flipped_bit_is_refused(issued: Issued) -> None:
    good = issued.data()
    statement.read(good, issued.trusted)
    for at in range(8 * len(good)):
        bad = bytearray(good)
        bad[at // 8] ^= 1 << at % 8
        with pytest.raises(ExactnessError):
            statement.read(bytes(bad), issued.trusted)


TAMPERED: dict[str, Callable[[Issued], bytes]] = {}


def tamper(change: Callable[..., bytes]) -> Callable[..., bytes]:
    TAMPERED[change.__name__.replace("_", " ").strip()] = change
    return change


def in_envelope(issued: Issued, change: Callable[[Body], object]) -> bytes:
    """The envelope with a change, its payload and signature as they were."""
    body = json.loads(issued.data())
    change(body)
    return canonical_json(body)


def in_signature(issued: Issued, change: Callable[[Body], object]) -> bytes:
    return in_envelope(issued, lambda body: change(body["signatures"][0]))


def with_payload(issued: Issued, payload: bytes) -> bytes:
    """Another payload under the old signature."""
    return in_envelope(issued, lambda body: body.update(payload=b64(payload)))


def in_statement(issued: Issued, change: Callable[[Body], object]) -> bytes:
    """A changed statement under the old signature."""
    return with_payload(issued, restated(issued, change))


def restated(issued: Issued, change: Callable[[Body], object]) -> bytes:
    said = json.loads(parts(issued.data())[1])
    change(said)
    return canonical_json(said)


def in_predicate(issued: Issued, **values: Any) -> bytes:
    return in_statement(issued, lambda said: said["predicate"].update(values))


def signed(issued: Issued, change: Callable[[Body], object]) -> bytes:
    """A changed statement, signed by the right key: only what it says is wrong."""
    return envelope.sign(PAYLOAD_TYPE, restated(issued, change), issued.signer)


@tamper
def another_payload_type(issued):
    return in_envelope(issued, lambda body: body.update(payloadType="application/json"))


@tamper
def payload_type_in_capitals(issued):
    return in_envelope(issued, lambda body: body.update(payloadType=PAYLOAD_TYPE.upper()))


@tamper
def payload_type_that_takes_from_the_payload(issued):
    payload = parts(issued.data())[1]
    moved = f"{PAYLOAD_TYPE} {len(payload)} "
    return in_envelope(issued, lambda body: body.update(payloadType=moved))


@tamper
def signed_by_another_key(issued):
    return envelope.sign(PAYLOAD_TYPE, parts(issued.data())[1], OTHER)


@tamper
def signed_by_another_key_under_our_key_id(issued):
    theirs = json.loads(envelope.sign(PAYLOAD_TYPE, parts(issued.data())[1], OTHER))
    sig = theirs["signatures"][0]["sig"]
    return in_signature(issued, lambda entry: entry.update(sig=sig))


@tamper
def key_id_of_another_key(issued):
    return in_signature(issued, lambda entry: entry.update(keyid=OTHER.key_id))


@tamper
def key_id_in_capitals(issued):
    return in_signature(issued, lambda entry: entry.update(keyid=entry["keyid"].upper()))


@tamper
def key_id_missing(issued):
    return in_signature(issued, lambda entry: entry.pop("keyid"))


@tamper
def key_id_empty(issued):
    return in_signature(issued, lambda entry: entry.update(keyid=""))


@tamper
def a_second_signature(issued):
    theirs = json.loads(envelope.sign(PAYLOAD_TYPE, parts(issued.data())[1], OTHER))
    return in_envelope(issued, lambda body: body["signatures"].append(theirs["signatures"][0]))


@tamper
def the_signature_twice(issued):
    return in_envelope(issued, lambda body: body["signatures"].append(body["signatures"][0]))


@tamper
def no_signature(issued):
    return in_envelope(issued, lambda body: body["signatures"].clear())


@tamper
def signature_of_another_certificate(issued):
    sig = b64(parts(issued.data(3))[2])
    return in_signature(issued, lambda entry: entry.update(sig=sig))


@tamper
def signature_of_zeros(issued):
    return in_signature(issued, lambda entry: entry.update(sig=b64(bytes(64))))


@tamper
def signature_cut(issued):
    sig = b64(parts(issued.data())[2][:63])
    return in_signature(issued, lambda entry: entry.update(sig=sig))


@tamper
def signature_with_a_byte_more(issued):
    sig = b64(parts(issued.data())[2] + b"\0")
    return in_signature(issued, lambda entry: entry.update(sig=sig))


@tamper
def signature_with_the_order_added_to_its_scalar(issued):
    sig = parts(issued.data())[2]
    scalar = int.from_bytes(sig[32:], "little") + ORDER
    other = b64(sig[:32] + scalar.to_bytes(32, "little"))
    return in_signature(issued, lambda entry: entry.update(sig=other))


@tamper
def signature_in_hex(issued):
    sig = parts(issued.data())[2].hex()
    return in_signature(issued, lambda entry: entry.update(sig=sig))


@tamper
def payload_with_spaces(issued):
    said = json.loads(parts(issued.data())[1])
    return with_payload(issued, json.dumps(said, sort_keys=True).encode())


@tamper
def payload_in_another_order(issued):
    said = json.loads(parts(issued.data())[1])
    turned = json.dumps(dict(reversed(said.items())), separators=(",", ":")).encode()
    return with_payload(issued, turned)


@tamper
def payload_empty(issued):
    return with_payload(issued, b"")


@tamper
def payload_of_another_certificate(issued):
    return with_payload(issued, parts(issued.data(3))[1])


@tamper
def payload_base64_twice(issued):
    return with_payload(issued, b64(parts(issued.data())[1]).encode())


@tamper
def envelope_with_spaces(issued):
    return json.dumps(json.loads(issued.data()), sort_keys=True).encode()


@tamper
def envelope_in_another_order(issued):
    body = json.loads(issued.data())
    return json.dumps(dict(reversed(body.items())), separators=(",", ":")).encode()


@tamper
def envelope_with_an_escaped_letter(issued):
    return issued.data().replace(b'"payload"', b'"\\u0070ayload"')


@tamper
def envelope_with_an_escaped_slash(issued):
    return issued.data().replace(b"application/vnd", b"application\\/vnd")


@tamper
def envelope_with_the_payload_twice(issued):
    good = issued.data()
    return b'{"payload":"' + b64(b"{}").encode() + b'",' + good[1:]


@tamper
def envelope_with_the_signatures_twice(issued):
    return b'{"signatures":[],' + issued.data()[1:]


@tamper
def envelope_with_a_field_more(issued):
    return in_envelope(issued, lambda body: body.update(more=1))


@tamper
def envelope_in_a_list(issued):
    return b"[" + issued.data() + b"]"


@tamper
def envelope_in_utf_16(issued):
    return issued.data().decode().encode("utf-16")


@tamper
def byte_order_mark(issued):
    return b"\xef\xbb\xbf" + issued.data()


@tamper
def new_line_at_the_end(issued):
    return issued.data() + b"\n"


@tamper
def two_envelopes(issued):
    return issued.data() + issued.data()


@tamper
def last_byte_missing(issued):
    return issued.data()[:-1]


@tamper
def first_half_only(issued):
    return issued.data()[: len(issued.data()) // 2]


@tamper
def nothing_at_all(issued):
    return b""


@tamper
def zeros_appended(issued):
    return issued.data() + bytes(512)


@tamper
def deeply_nested_lists(issued):
    return b"[" * 200_000


@tamper
def base64_for_urls(issued):
    for count in range(1000):  # until the signature has a letter that differs
        values = {"records_erased": count}
        good = signed(issued, lambda said, values=values: said["predicate"].update(values))
        body = json.loads(good)
        sig = body["signatures"][0]["sig"]
        if set(sig) & set("+/"):
            body["signatures"][0]["sig"] = sig.replace("+", "-").replace("/", "_")
            statement.read(good, issued.trusted)
            return canonical_json(body)
    raise AssertionError("no signature has such a letter")


@tamper
def base64_without_padding(issued):
    return in_signature(issued, lambda entry: entry.update(sig=entry["sig"].rstrip("=")))


@tamper
def base64_with_padding_to_spare(issued):
    return in_signature(issued, lambda entry: entry.update(sig=entry["sig"] + "===="))


@tamper
def base64_with_line_breaks(issued):
    return in_envelope(
        issued, lambda body: body.update(payload=body["payload"][:76] + "\n" + body["payload"][76:])
    )


@tamper
def base64_with_bits_that_mean_nothing(issued):
    sig = json.loads(issued.data())["signatures"][0]["sig"]
    assert sig.endswith("==")  # 64 bytes leave four bits over
    letters = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
    other = sig[:-3] + letters[letters.index(sig[-3]) + 1] + "=="
    assert base64.b64decode(other) == base64.b64decode(sig)
    return in_signature(issued, lambda entry: entry.update(sig=other))


@tamper
def subject_digest_changed(issued):
    return in_statement(issued, lambda s: s["subject"][0]["digest"].update(sha256="0" * 64))


@tamper
def subject_digest_changed_and_signed_by_another_key(issued):
    payload = restated(issued, lambda s: s["subject"][0]["digest"].update(sha256="0" * 64))
    return envelope.sign(PAYLOAD_TYPE, payload, OTHER)


@tamper
def subject_removed(issued):
    return in_statement(issued, lambda said: said["subject"].pop())


@tamper
def count_of_records_changed(issued):
    return in_predicate(issued, records_erased=1)


@tamper
def request_changed(issued):
    return in_predicate(issued, request="er_" + "0" * 32)


@tamper
def sequence_changed(issued):
    return in_predicate(issued, sequence=1)


@tamper
def previous_changed(issued):
    return in_predicate(issued, previous=None)


@tamper
def due_date_changed(issued):
    return in_statement(
        issued,
        lambda said: said["predicate"]["times"].update(due="2099-01-01T00:00:00.000+00:00"),
    )


@tamper
def replay_claimed(issued):
    return in_predicate(issued, replay="all")


@tamper
def limits_removed(issued):
    return in_predicate(issued, outside=[])


@tamper
def another_statement_type_rightly_signed(issued):
    return signed(issued, lambda said: said.update(_type="https://in-toto.io/Statement/v0.1"))


@tamper
def another_predicate_type_rightly_signed(issued):
    return signed(issued, lambda said: said.update(predicateType="https://slsa.dev/provenance/v1"))


@tamper
def no_subject_rightly_signed(issued):
    return signed(issued, lambda said: said.update(subject=[]))


@tamper
def a_weaker_subject_digest_rightly_signed(issued):
    return signed(issued, lambda said: said["subject"][0].update(digest={"md5": "0" * 32}))


@tamper
def an_unknown_field_rightly_signed(issued):
    return signed(issued, lambda said: said["predicate"].update(more=1))


@tamper
def a_missing_field_rightly_signed(issued):
    return signed(issued, lambda said: said["predicate"].pop("outside"))


@tamper
def a_number_as_text_rightly_signed(issued):
    return signed(issued, lambda said: said["predicate"].update(sequence="2"))


@tamper
def a_truth_value_for_a_number_rightly_signed(issued):
    return signed(issued, lambda said: said["predicate"].update(sequence=True))


@tamper
def a_negative_count_rightly_signed(issued):
    return signed(issued, lambda said: said["predicate"].update(records_erased=-1))


@tamper
def a_field_twice_rightly_signed(issued):
    payload = parts(issued.data())[1]
    return envelope.sign(PAYLOAD_TYPE, b'{"_type":"x",' + payload[1:], issued.signer)


@tamper
def spaces_rightly_signed(issued):
    payload = json.dumps(json.loads(parts(issued.data())[1]), sort_keys=True).encode()
    return envelope.sign(PAYLOAD_TYPE, payload, issued.signer)


@tamper
def another_type_rightly_signed(issued):
    return envelope.sign("application/json", parts(issued.data())[1], issued.signer)


@tamper
def no_statement_rightly_signed(issued):
    return envelope.sign(PAYLOAD_TYPE, b"NaN", issued.signer)


def test_there_are_enough_kinds_of_tampering() -> None:
    assert len(TAMPERED) >= 60


@pytest.mark.parametrize("kind", TAMPERED)
def test_tampering_is_refused(issued: Issued, tmp_path: Path, kind: str) -> None:
    bad = TAMPERED[kind](issued)
    assert bad not in [issued.data(place) for place in (1, 2, 3)], "nothing was changed"
    outcome = checked(bad, issued.trusted, tmp_path)
    assert outcome["valid"] is False
    right = kind.endswith("rightly signed") and kind != "another type rightly signed"
    assert outcome["signature"] is right and outcome.get("statement", False) is False


def test_nothing_passes_without_the_key(issued: Issued, tmp_path: Path) -> None:
    for trusted in ({}, {OTHER.key_id: OTHER.public}, {issued.signer.key_id: OTHER.public}):
        assert not checked(issued.data(), trusted, tmp_path)["valid"]

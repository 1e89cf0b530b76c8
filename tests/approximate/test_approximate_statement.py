"""The approximate statement fails closed, hides its data, and is never taken for a certificate."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement as Foreign
from pydantic import ValidationError

from data_index import envelope
from data_index.envelope import Signer
from data_index.storage import canonical_json
from sisa import certificate_check
from sisa import statement as exact
from sisa.approximate import statement
from sisa.approximate.evidence import (
    Attack,
    Change,
    Evidence,
    Membership,
    Quantisation,
    Recovery,
    Relearning,
    Utility,
)
from sisa.approximate.statement import Approximation, Base, Data, Moments, Statement, Work
from sisa.cli import main
from sisa.errors import ExactnessError, SignatureError
from sisa.statement import Subject

SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))
TRUSTED = {SIGNER.key_id: SIGNER.public}
DIGEST = "0" * 64
TIME = "2026-01-02T03:04:05.006+00:00"

RECOVERY = Recovery(metric="probability", base=0.9, unlearned=0.1, attacked=0.5, recovered=0.5)
ATTACKS: dict[str, Any] = {
    "membership": Membership(
        members=20,
        non_members=20,
        attacks={
            "loss": Attack(
                auc=0.5, tpr_at_1_percent="not evaluated", tpr_at_01_percent="not evaluated"
            )
        },
        privacy_leakage="not evaluated",
    ),
    "relearning": Relearning(
        items=20, tuned_on="forget items", steps=5, lr=1e-4, recovery=RECOVERY
    ),
    "quantisation": Quantisation(items=20, bits={"4": RECOVERY}),
}


def made(evidence: Evidence | None = None, **changes: Any) -> Statement:
    evidence = evidence or Evidence()
    fields: dict[str, Any] = {
        "exactness": "approximate",
        "method": "npo",
        "source": "a paper",
        "settings": {"lr": 1e-05, "epochs": 2, "prompt": "{}", "retain": None, "adapter": False},
        "base": Base(files=1, digest=DIGEST),
        "forget": Data(items=20, positions=90, digest=DIGEST, keyed=True),
        "retain": "none",
        "alternatives": "none",
        "holdout": "none",
        "paraphrased": "none",
        "wrong": (),
        "retrained": "none",
        "brought": {},
        "work": Work(steps=4, stopped="finished", seconds=1.5, peak_bytes=2, notes=()),
        "environment": {"torch": "2"},
        "version": "0",
        "times": Moments(started=TIME, finished=TIME, issued=TIME),
        "evidence": evidence,
        "verdict": evidence.verdict,
        "outside": statement.OUTSIDE,
        **changes,
    }
    return Statement(
        subject=(Subject(name="model.safetensors", digest={"sha256": DIGEST}),),
        predicate=Approximation(**fields),
    )


@pytest.mark.parametrize(
    "there", [c for n in range(4) for c in itertools.combinations(ATTACKS, n)], ids="+".join
)
def test_the_verdict_needs_all_three_attacks(there: tuple[str, ...]) -> None:
    evidence = Evidence(**{name: ATTACKS[name] for name in there})
    expected = "evaluated" if len(there) == 3 else "not evaluated"
    assert evidence.verdict == expected
    other = "not evaluated" if expected == "evaluated" else "evaluated"
    with pytest.raises(ValidationError, match="does not follow"):
        made(evidence, verdict=other)


def test_other_evidence_does_not_stand_in_for_an_attack() -> None:
    change = Change(before=1.0, after=0.5)
    kept = Utility(items=9, held_out=True, probability=change, exact=change)
    assert Evidence(utility=kept).verdict == "not evaluated"


def test_what_is_missing_is_said_and_never_null() -> None:
    said = json.loads(made().payload)["predicate"]
    assert said["evidence"] == dict.fromkeys(Evidence.model_fields, "not evaluated")
    assert said["verdict"] == "not evaluated" and said["retain"] == "none"
    assert said["exactness"] == "approximate"


@pytest.mark.parametrize("name", Evidence.model_fields)
@pytest.mark.parametrize("value", [None, "", "evaluated", {}, ...])
def test_evidence_that_is_left_out_or_null_is_refused(name: str, value: Any) -> None:
    body = json.loads(made().payload)
    if value is ...:
        del body["predicate"]["evidence"][name]
    else:
        body["predicate"]["evidence"][name] = value
    with pytest.raises(ExactnessError):
        statement.read(canonical_json(body))


def test_a_statement_that_calls_itself_exact_is_refused() -> None:
    body = json.loads(made().payload)
    for value in ("bitwise", None, "exact"):
        body["predicate"]["exactness"] = value
        with pytest.raises(ExactnessError):
            statement.read(canonical_json(body))


def test_a_statement_is_read_as_it_was_written() -> None:
    stated = made(Evidence(**ATTACKS))
    assert statement.read(stated.payload) == stated
    signed = stated.signed(SIGNER)
    assert statement.read(signed) == stated == statement.read(signed, TRUSTED)
    other = Signer(Ed25519PrivateKey.from_private_bytes(bytes(32)))
    for bad in (stated.payload, stated.signed(other), signed.replace(b"sig", b"sag"), b"{}", b""):
        with pytest.raises(SignatureError):
            statement.read(bad, TRUSTED)
    with pytest.raises(ExactnessError):
        statement.read(stated.payload + b" ")


def test_other_in_toto_tools_read_it() -> None:
    message = json_format.ParseDict(json.loads(made().payload), statement_pb2.Statement())
    foreign = Foreign.copy_from_pb(message)
    foreign.validate()
    assert foreign.pb.predicate_type == "https://sisa-unlearning.org/approximate/v1"


@pytest.mark.parametrize(
    ("part", "change"),
    [
        (ATTACKS["membership"], {"members": 1}),
        (ATTACKS["membership"], {"non_members": 1}),
        (ATTACKS["membership"], {"attacks": {}}),
        (ATTACKS["relearning"], {"items": 1}),
        (ATTACKS["relearning"], {"steps": 0}),
        (ATTACKS["quantisation"], {"items": 1}),
        (ATTACKS["quantisation"], {"bits": {}}),
        (ATTACKS["quantisation"], {"bits": {"16": RECOVERY}}),
        (RECOVERY, {"recovered": 1.01}),
        (RECOVERY, {"recovered": float("nan")}),
        (RECOVERY, {"attacked": float("inf")}),
        (ATTACKS["membership"].attacks["loss"], {"auc": float("nan")}),
        (ATTACKS["membership"].attacks["loss"], {"tpr_at_1_percent": None}),
    ],
)
def test_evidence_that_means_nothing_is_refused(part: Any, change: dict[str, Any]) -> None:
    whole = {name: getattr(part, name) for name in type(part).model_fields}
    type(part)(**whole)
    with pytest.raises(ValidationError):
        type(part)(**whole | change)


def test_digests_of_data_are_plain_or_keyed(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"what is to be forgotten" * 99_999)
    data = (tmp_path / "f").read_bytes()
    assert statement.file_digest(tmp_path / "f") == hashlib.sha256(data).hexdigest()
    expected = hmac.new(b"key", data, "sha256").hexdigest()
    assert statement.file_digest(tmp_path / "f", b"key") == expected


def test_files_of_a_folder_are_held_against_the_statement(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    for name in ("a", "deep/b", "c", statement.FILE):
        (tmp_path / name).write_text(name)
    stated = made().model_copy(update={"subject": statement.subjects(tmp_path)})
    assert [s.name for s in stated.subject] == ["a", "c", "deep/b"]
    before = statement.folder_digest(tmp_path)
    assert statement.differences(stated, tmp_path) == []
    (tmp_path / statement.FILE).write_text("changed")
    assert statement.folder_digest(tmp_path) == before
    (tmp_path / "a").write_text("changed")
    (tmp_path / "deep" / "b").unlink()
    (tmp_path / "d").touch()
    assert statement.differences(stated, tmp_path) == ["a", "d", "deep/b"]
    assert statement.folder_digest(tmp_path) != before


@pytest.mark.parametrize("signed", [False, True])
@pytest.mark.parametrize("command", ["verify", "verify with the key", "show"])
@pytest.mark.parametrize("style", ["text", "json"])
def test_no_command_takes_it_for_a_certificate(
    command: str, signed: bool, style: str, tmp_path: Path
) -> None:
    file, key = tmp_path / "statement.json", tmp_path / "signing.pub"
    stated = made(Evidence(**ATTACKS))
    file.write_bytes(stated.signed(SIGNER) if signed else stated.payload)
    key.write_bytes(envelope.public_pem(SIGNER.public))
    words = ["certificate", command.partition(" ")[0], str(file), "--output", style]
    if "key" in command:
        words += ["--public-key", str(key)]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 4
    sentence = "is a statement of approximate unlearning, which certifies no erasure."
    if style == "json":
        assert json.loads(done.stdout)["error"]["message"].endswith(sentence)
    else:
        assert done.stdout == "" and sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1


def test_its_payload_is_no_certificate_either() -> None:
    """Past the check of the commands, the exact statement's own form refuses it."""
    signed = made(Evidence(**ATTACKS)).signed(SIGNER)
    with pytest.raises(ExactnessError):
        exact.read(signed, TRUSTED)
    checks, stated = certificate_check.signed(signed, TRUSTED)
    assert stated is None and checks[-1].passed is False


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (made().payload, True),
        (made().signed(SIGNER), True),
        (made().payload.replace(b"approximate/v1", b"approximate/v9"), True),
        (b'{"predicateType":"https://sisa-unlearning.org/erasure/v1"}', False),
        (envelope.sign(exact.PAYLOAD_TYPE, b'{"predicateType":1}', SIGNER), False),
        (b"[]", False),
        (b"\xff", False),
        (b"", False),
        (b"[" * 200_000, False),
        (b'{"payload":"!"}', False),
    ],
)
def test_what_claims_to_be_one(data: bytes, expected: bool) -> None:
    assert statement.is_one(data) is expected

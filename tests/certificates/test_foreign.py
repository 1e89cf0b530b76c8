"""What others wrote for DSSE and in-toto accepts our certificates, and refuses changed ones."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from google.protobuf import json_format
from in_toto_attestation.v1 import statement_pb2
from in_toto_attestation.v1.statement import Statement
from securesystemslib.dsse import Envelope
from securesystemslib.exceptions import VerificationError
from securesystemslib.signer import CryptoSigner, SSlibKey

from data_index import envelope
from data_index.storage import canonical_json
from sisa import statement
from sisa.cli import main

from .helpers import OTHER, Issued, b64, parts


def foreign_key(signer: envelope.Signer) -> SSlibKey:
    raw = signer.public.public_bytes(Encoding.Raw, PublicFormat.Raw)
    return SSlibKey(signer.key_id, "ed25519", "ed25519", {"public": raw.hex()})


@pytest.mark.parametrize("place", [1, 2, 3])
def test_securesystemslib_accepts_a_certificate(issued: Issued, place: int) -> None:
    found = Envelope.from_dict(json.loads(issued.data(place)))
    key = foreign_key(issued.signer)
    assert found.verify([key, foreign_key(OTHER)], 1) == {key.keyid: key}
    assert found.payload_type == "application/vnd.in-toto+json"


def test_securesystemslib_refuses_a_changed_one(issued: Issued) -> None:
    body, payload, _ = parts(issued.data())
    for at in range(0, len(payload), 97):
        bad = bytearray(payload)
        bad[at] ^= 1
        found = Envelope.from_dict(json.loads(canonical_json({**body, "payload": b64(bad)})))
        with pytest.raises(VerificationError):
            found.verify([foreign_key(issued.signer)], 1)
    with pytest.raises(VerificationError):
        Envelope.from_dict(json.loads(issued.data())).verify([foreign_key(OTHER)], 1)


def test_what_securesystemslib_signs_is_accepted(issued: Issued) -> None:
    _, payload, signature = parts(issued.data())
    theirs = Envelope(payload, statement.PAYLOAD_TYPE, {})
    theirs.sign(CryptoSigner(issued.signer.private, foreign_key(issued.signer)))
    data = canonical_json(theirs.to_dict())
    assert statement.read(data, issued.trusted) == statement.read(issued.data(), issued.trusted)
    assert parts(data)[2] == signature


def test_in_toto_reads_the_statement(issued: Issued) -> None:
    payload = parts(issued.data())[1]
    message = json_format.Parse(payload, statement_pb2.Statement())
    found = Statement.copy_from_pb(message)
    found.validate()
    assert found.pb.predicate_type == statement.PREDICATE
    mine = statement.parse(payload)
    assert [(s.name, dict(s.digest)) for s in found.pb.subject] == [
        (s.name, dict(s.digest)) for s in mine.subject
    ]
    assert json_format.MessageToDict(found.pb.predicate) == json.loads(payload)["predicate"]


def test_in_toto_refuses_what_is_no_statement(issued: Issued) -> None:
    said = json.loads(parts(issued.data())[1])
    for change in ({"_type": "x"}, {"subject": []}, {"predicateType": ""}):
        message = json_format.ParseDict(said | change, statement_pb2.Statement())
        with pytest.raises(ValueError, match=r"statement type|subject|Predicate type"):
            Statement.copy_from_pb(message).validate()


def run(folder: Path, monkeypatch: pytest.MonkeyPatch, *words: str) -> tuple[int, dict[str, Any]]:
    """Run the command outside of any workspace."""
    arguments = ["certificate", *words, "--output", "json"]
    monkeypatch.setattr(sys, "argv", ["sisa", *arguments])
    monkeypatch.chdir(folder)
    done = CliRunner().invoke(main, arguments)
    return done.exit_code, json.loads(done.stdout)


def test_the_command_needs_the_file_and_a_key_and_nothing_else(
    issued: Issued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good, bad, key = tmp_path / "good.json", tmp_path / "bad.json", tmp_path / "key.pub"
    good.write_bytes(issued.data())
    bad.write_bytes(issued.data()[:-1])
    key.write_bytes(envelope.public_pem(issued.signer.public))

    def verify(file: str, *keys: str) -> tuple[int, dict[str, Any]]:
        named = (word for key in keys for word in ("--public-key", key))
        return run(tmp_path, monkeypatch, "verify", file, *named)

    code, found = verify("good.json", "key.pub")
    assert (code, found["valid"]) == (0, True)
    code, found = verify("bad.json", "key.pub")
    assert (code, found["valid"]) == (4, False) and found["checks"]
    assert verify("none.json", "key.pub")[0] == verify("good.json", "none.pub")[0] == 5
    assert verify("good.json", "good.json")[0] == verify("good.json")[0] == 2
    assert verify("none.json")[0] == 5
    code, found = run(tmp_path, monkeypatch, "show", "good.json")
    assert code == 0 and found["statement"] == json.loads(parts(issued.data())[1])
    assert run(tmp_path, monkeypatch, "show", "bad.json")[0] == 4
    assert run(tmp_path, monkeypatch, "show", "none.json")[0] == 5


def test_verifying_a_file_loads_nothing_heavy(issued: Issued, tmp_path: Path) -> None:
    code = (
        "import sys; from sisa.cli import main\n"
        "try: main()\n"
        "finally: print(sorted({'torch', 'ray', 'mlflow'} & set(sys.modules)), file=sys.stderr)"
    )
    key = issued.folder / "signing.pub"
    call = [
        sys.executable,
        "-c",
        code,
        "certificate",
        "verify",
        issued.path(2),
        "--public-key",
        key,
    ]
    done = subprocess.run(call, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, done.stderr) == (0, "[]\n")

"""Without a signing key nothing is accepted; with a new one, old certificates stay valid."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from data_index import envelope
from data_index.envelope import Signer
from sisa import secrets
from sisa.errors import ConfigurationError
from sisa.signing_keys import SigningKeys
from sisa.workspace import Workspace

from .helpers import check_of, file, opened


def pem(signer: Signer) -> str:
    return envelope.private_pem(signer.private).decode()


def new() -> Signer:
    return Signer(Ed25519PrivateKey.generate())


@pytest.mark.parametrize("what", ["missing", "damaged", "of another kind"])
def test_without_a_signing_key_nothing_is_accepted(copy: Workspace, what: str) -> None:
    path = copy.context.folder / "signing.key"
    whole, before = path.read_bytes(), copy.status()
    path.unlink()
    if what != "missing":
        path.write_bytes(b"?" if what == "damaged" else whole.replace(b"PRIVATE", b"PUBLIC"))
    for call in (
        lambda: copy.forget(subjects=["person-5"]),
        lambda: copy.forget(subjects=["person-5"], wait=False),
        copy.work,
        copy.rotate_signing_key,
    ):
        with pytest.raises(ConfigurationError, match=r"signing\.key.*SISA_SIGNING_KEY|Restore"):
            call()
    assert copy.status() == before
    assert copy.forget(subjects=["person-5"], dry_run=True).status == "planned"
    path.unlink(missing_ok=True)
    path.write_bytes(whole)
    assert copy.forget(subjects=["person-5"]).status == "certified"


def test_a_new_key_signs_and_the_old_one_still_counts(copy: Workspace) -> None:
    folder = copy.context.folder
    old = copy.context.signing.signer()
    done = copy.rotate_signing_key()
    assert done.former_signing_key == old.key_id != done.signing_key
    former = envelope.read_public(Path(done.former_public_key).read_bytes(), "it")
    assert envelope.key_id(former) == old.key_id
    assert Path(done.former_public_key) == folder / f"signing-{old.key_id[:16]}.pub"
    assert stat.S_IMODE((folder / "signing.key").stat().st_mode) == 0o600
    issued = copy.forget(subjects=["person-5"])
    assert issued.certificate is not None
    assert envelope.signed_by(Path(issued.certificate).read_bytes()) == done.signing_key
    assert check_of(copy) is True
    for place, key in ((3, done.former_public_key), (4, done.public_key)):
        assert copy.verify_certificate(file(copy, place), [key]).valid
    assert not copy.verify_certificate(file(copy, 3), [done.public_key]).valid
    Path(done.former_public_key).unlink()
    assert check_of(copy) is False


def test_the_old_key_is_asked_before_it_goes(copy: Workspace) -> None:
    keys, told = copy.context.signing, []

    def announce(old: Signer, public: Ed25519PublicKey) -> None:
        told.append((keys.signer().key_id, old.key_id, envelope.key_id(public)))

    old, fresh = keys.rotate(announce)
    assert told == [(old.key_id, old.key_id, fresh.key_id)]


def test_an_interrupted_rotation_leaves_a_key(
    copy: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys, old = copy.context.signing, copy.context.signing.signer()

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        keys.rotate(crash)
    assert keys.signer().key_id == old.key_id
    with monkeypatch.context() as patch:
        patch.setattr(SigningKeys, "_publish", crash)
        with pytest.raises(KeyboardInterrupt):  # before it begins
            keys.rotate(lambda *_: None)
    replaced = Path.replace
    with monkeypatch.context() as patch:
        patch.setattr(
            Path, "replace", lambda a, b: crash() if b.name == "signing.pub" else replaced(a, b)
        )
        with pytest.raises(KeyboardInterrupt):  # the new key stands, its public half does not
            keys.rotate(lambda *_: None)
    assert {old.key_id, keys.signer().key_id} == set(keys.trusted())
    public = envelope.read_public((copy.context.folder / "signing.pub").read_bytes(), "it")
    assert envelope.key_id(public) == keys.signer().key_id != old.key_id
    assert check_of(copy) is True


def test_the_environment_outranks_the_file(copy: Workspace) -> None:
    folder, before = copy.context.folder, copy.context.signing.signer()
    given = new()
    with opened(folder, SISA_SIGNING_KEY=pem(given)) as workspace:
        issued = workspace.forget(subjects=["person-5"])
        assert issued.certificate is not None
        assert envelope.signed_by(Path(issued.certificate).read_bytes()) == given.key_id
        assert (folder / f"signing-{before.key_id[:16]}.pub").exists()
        assert check_of(workspace) is True
        with pytest.raises(ConfigurationError, match="SISA_SIGNING_KEY"):
            workspace.rotate_signing_key()
    with pytest.raises(ConfigurationError, match="SISA_SIGNING_KEY is no Ed25519") as raised:
        opened(folder, SISA_SIGNING_KEY="hunter2")
    assert "hunter2" not in str(raised.value)


def test_a_workspace_whose_key_is_given_gets_none(tmp_path: Path) -> None:
    given = new()
    environment = {"SISA_SECRET_KEY": "0" * 64, "SISA_SIGNING_KEY": pem(given)}
    secrets.make(tmp_path, environment)
    assert [p.name for p in tmp_path.iterdir()] == ["signing.pub"]
    assert set(SigningKeys.of(tmp_path, environment).trusted()) == {given.key_id}
    assert set(SigningKeys.of(tmp_path, {}).trusted()) == {given.key_id}, "enough to verify with"
    assert pem(given)[40:80] not in repr(SigningKeys.of(tmp_path, environment))

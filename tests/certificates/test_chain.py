"""A chain from which a certificate is missing, or in which one is another, is noticed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from data_index import envelope
from data_index.storage import canonical_json, sha256
from sisa import certificate
from sisa.statement import PAYLOAD_TYPE
from sisa.workspace import Workspace

from .helpers import OTHER, Issued, check_of, file, made, parts

BROKEN: dict[str, Callable[[Workspace, Issued], object]] = {}


def broken(change: Callable[..., object]) -> Callable[..., object]:
    BROKEN[change.__name__.replace("_", " ").strip()] = change
    return change


def reissued(issued: Issued, place: int, **values: Any) -> bytes:
    """A certificate with other contents, signed by the right key."""
    said = json.loads(parts(issued.data(place))[1])
    said["predicate"].update(values)
    return envelope.sign(PAYLOAD_TYPE, canonical_json(said), issued.signer)


def point(workspace: Workspace, place: int) -> None:
    """Let the ledger name the certificate of another place as the last one."""
    with workspace.context.ledger.write() as connection:
        for name, value in (
            ("certificate_path", certificate.path_of(place)),
            ("certificate_head", sha256(file(workspace, place).read_bytes())),
        ):
            connection.exec_driver_sql("UPDATE settings SET value=? WHERE name=?", (value, name))


@broken
def the_last_is_removed(ws, issued):
    file(ws, 3).unlink()


@broken
def the_middle_one_is_removed(ws, issued):
    file(ws, 2).unlink()


@broken
def the_first_is_removed(ws, issued):
    file(ws, 1).unlink()


@broken
def all_are_removed(ws, issued):
    shutil.rmtree(file(ws, 1).parent)


@broken
def two_are_swapped(ws, issued):
    file(ws, 1).write_bytes(issued.data(2))
    file(ws, 2).write_bytes(issued.data(1))


@broken
def the_last_two_are_swapped(ws, issued):
    file(ws, 2).write_bytes(issued.data(3))
    file(ws, 3).write_bytes(issued.data(2))


@broken
def an_older_one_stands_for_the_last(ws, issued):
    file(ws, 3).write_bytes(issued.data(2))


@broken
def an_older_one_is_replayed_behind_the_last(ws, issued):
    file(ws, 4).write_bytes(issued.data(2))


@broken
def the_last_is_there_twice(ws, issued):
    file(ws, 4).write_bytes(issued.data(3))


@broken
def the_last_is_issued_again_with_other_contents(ws, issued):
    file(ws, 3).write_bytes(reissued(issued, 3, records_erased=1))


@broken
def the_middle_one_is_issued_again_with_other_contents(ws, issued):
    file(ws, 2).write_bytes(reissued(issued, 2, records_erased=1))


@broken
def the_middle_one_is_left_out_and_the_last_says_so(ws, issued):
    file(ws, 2).write_bytes(
        reissued(issued, 3, sequence=2, previous=sha256(file(ws, 1).read_bytes()))
    )
    file(ws, 3).unlink()
    point(ws, 2)


@broken
def the_ledger_names_an_older_one(ws, issued):
    point(ws, 2)


@broken
def the_ledger_names_none(ws, issued):
    with ws.context.ledger.write() as connection:
        connection.exec_driver_sql("DELETE FROM settings WHERE name LIKE 'certificate%'")


@broken
def a_request_is_closed_by_the_certificate_of_another(ws, issued):
    with ws.context.ledger.write() as connection:
        connection.exec_driver_sql("UPDATE requests SET certificate=?", (certificate.path_of(1),))


@broken
def one_is_forged(ws, issued):
    payload = parts(issued.data(3))[1]
    file(ws, 3).write_bytes(envelope.sign(PAYLOAD_TYPE, payload, OTHER))
    point(ws, 3)


@broken
def a_bit_is_flipped(ws, issued):
    bad = bytearray(issued.data(2))
    bad[100] ^= 1
    file(ws, 2).write_bytes(bytes(bad))


@broken
def a_strange_file_lies_among_them(ws, issued):
    file(ws, 1).with_name("note.txt").write_text("?")


@broken
def nonsense_stands_at_the_next_place(ws, issued):
    file(ws, 4).write_bytes(b"?")


@broken
def one_of_another_workspace_stands_for_the_last(ws, issued):
    other = made(ws.context.folder.with_name("other"))
    with other:
        done = other.forget(subjects=["person-9"])
        file(ws, 3).write_bytes(Path(done.certificate).read_bytes())


def test_the_chain_as_issued_is_whole(copy: Workspace) -> None:
    assert check_of(copy) is True
    listed = copy.certificates()
    assert [c.sequence for c in listed.certificates] == [1, 2, 3]
    assert listed.head == copy.status().certificate_head == listed.certificates[-1].sha256
    for entry in listed.certificates:
        verified = copy.verify_certificate(entry.file)
        assert verified.valid and all(c.passed for c in verified.checks)
        assert copy.show_certificate(entry.request).statement.predicate.sequence == entry.sequence


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_chain_is_noticed(copy: Workspace, issued: Issued, kind: str) -> None:
    BROKEN[kind](copy, issued)
    assert check_of(copy) is False
    outside = copy.context.folder.with_name("kept.json")
    outside.write_bytes(issued.data(3))
    verified = copy.verify_certificate(outside)
    assert not verified.valid and verified.exit_code == 4


def test_a_certificate_of_another_workspace_is_refused(copy: Workspace, tmp_path: Path) -> None:
    other = made(tmp_path / "other")
    with other:
        theirs = other.forget(subjects=["person-9"]).certificate
        assert not copy.verify_certificate(theirs).valid
        key = other.context.folder / "signing.pub"
        verified = copy.verify_certificate(theirs, [key])
        assert {c.name: c.passed for c in verified.checks}["signature"] is True
        assert not verified.valid

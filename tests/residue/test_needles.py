"""Scan sets: which forms they give, what they leave out, and how they are kept."""

from __future__ import annotations

import base64
import json
import os
import unicodedata

import numpy as np
import pytest

from sisa.errors import ExactnessError
from sisa.residue import ScanSet, seal, unseal
from sisa.residue.needles import VARIETY
from sisa.residue.rows import SAMPLED, _windows
from sisa.residue.search import Finder

KEY = bytes(range(16))
FULL = ScanSet(
    ids=("josé-martín".encode(), b"person-0017"),
    subjects=(KEY,),
    row_records=(KEY[::-1],),
    digests=(os.urandom(16),),
    windows=(os.urandom(16),),
    texts=(b"a text of hers",),
)


def found_in(scan_set: ScanSet, hay: bytes) -> set[str]:
    finder = Finder(scan_set.needles()[0])
    return {finder.needles[n].kind for n in finder.find(hay)}


@pytest.mark.parametrize(
    "form",
    [
        lambda t: t.encode(),
        lambda t: t.encode("utf-16-le"),
        lambda t: t.encode("utf-16-be"),
        lambda t: unicodedata.normalize("NFD", t).encode(),
        lambda t: unicodedata.normalize("NFD", t).encode("utf-16"),
        lambda t: json.dumps({"who": t}).encode(),
        lambda t: t.encode().hex().encode(),
        lambda t: base64.b64encode(t.encode()),
        lambda t: b"/users/jos%C3%A9-mart%C3%ADn/runs",
    ],
)
def test_every_form_of_an_id(form) -> None:
    assert found_in(FULL, b"\0\1" + form("josé-martín") + b"\2") == {"id"}
    assert found_in(FULL, b"\0\1" + form("josé-martan") + b"\2") == set() or "%" in str(form("x"))


@pytest.mark.parametrize("form", [bytes, lambda k: k.hex().encode(), base64.urlsafe_b64encode])
def test_every_form_of_a_key(form) -> None:
    assert found_in(FULL, b"x" + form(KEY)) == {"key"}
    assert found_in(FULL, b"x" + form(KEY[::-1])) == {"row key"}
    assert found_in(FULL, b"x" + form(FULL.digests[0])) == {"row digest"}


def test_what_is_short_is_counted_and_not_looked_for() -> None:
    needles, short = ScanSet(ids=(b"bob", b"alice", b"1234567", b"robert", b"12345678")).needles()
    assert short == 3
    assert {n.pattern for n in needles} >= {b"robert", b"12345678"}
    assert all(n.bounded for n in needles if n.pattern.isdigit())


def test_a_number_is_another_kind_of_needle_in_utf_16() -> None:
    assert found_in(ScanSet(ids=(b"12345678",)), "№ 12345678".encode("utf-16-le")) == {"id"}


def test_windows_are_varied_and_few() -> None:
    values = np.zeros((3, 1600), np.uint8)
    values[0] = np.arange(1600) % 251
    values[1, :4] = 1, 2, 3, 4
    values[1, 160 : 160 + VARIETY] = range(1, VARIETY + 1)
    windows = _windows(values)
    assert len([w for w in windows if w in values[0].tobytes()]) == SAMPLED
    assert [w for w in windows if w not in values[0].tobytes()] == [values[1, 160:176].tobytes()]


def test_windows_that_are_varied_throughout_come_first() -> None:
    """Eight zeros in a row are in most files: a window with them is taken if there is no other."""
    values = np.zeros((2, 96), np.uint8)
    values[0, 0:6] = values[1, 0:6] = range(1, 7)
    values[0, 16:21], values[0, 27:32] = range(1, 6), range(6, 11)
    values[0, 32:48] = range(20, 36)
    assert _windows(values[:1]) == {values[0, 32:48].tobytes()}
    assert _windows(values[1:]) == {values[1, 0:16].tobytes()}


def test_all_windows_of_a_value_with_few() -> None:
    value = np.random.default_rng(0).integers(0, 256, (1, 16 * SAMPLED + 7)).astype(np.uint8)
    assert _windows(value) == {value[0, i : i + 16].tobytes() for i in range(0, 16 * SAMPLED, 16)}


def test_a_scan_set_survives_its_seal() -> None:
    sealed, key = seal(FULL)
    assert unseal(sealed, key) == FULL
    assert ScanSet.from_bytes(ScanSet().to_bytes()) == ScanSet()
    assert found_in(FULL, sealed + key) == set(), "the seal shows nothing"
    assert seal(FULL)[0] != sealed, "no key is used twice"


@pytest.mark.parametrize("place", [0, 40, -1])
def test_a_damaged_seal_is_refused(place: int) -> None:
    sealed, key = seal(FULL)
    other = bytearray(sealed)
    other[place] ^= 1
    for wrong in (lambda: unseal(bytes(other), key), lambda: unseal(sealed, seal(FULL)[1])):
        with pytest.raises(ExactnessError):
            wrong()


def test_union_keeps_each_once() -> None:
    assert FULL | ScanSet() == FULL | FULL
    assert (FULL | ScanSet(ids=(b"more-of-it",))).ids == tuple(sorted((*FULL.ids, b"more-of-it")))
    assert len(FULL.gone.records) == 1 and len(FULL.gone.subjects) == 1

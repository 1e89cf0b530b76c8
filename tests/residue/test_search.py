"""The search finds what is there, wherever it lies, and nothing else."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sisa.residue import search
from sisa.residue.needles import Needle
from sisa.residue.search import Finder

LETTERS = st.lists(st.sampled_from(b"ab0\0"), min_size=6, max_size=40).map(bytes)


def plain(patterns: list[bytes]) -> Finder:
    return Finder([Needle(p, "value") for p in patterns])


@settings(max_examples=100, deadline=None)
@given(st.lists(LETTERS, min_size=1, max_size=30, unique=True), st.binary(max_size=60), st.data())
def test_it_agrees_with_the_obvious_way(patterns, noise, data) -> None:
    parts = data.draw(st.lists(st.sampled_from([*patterns, noise, b"ab0\0" * 9]), max_size=20))
    hay = b"".join(parts)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search, "CHUNK", data.draw(st.integers(1, 200)))
        found = plain(patterns).find(hay)
    assert found == {i for i, p in enumerate(patterns) if p in hay}


@pytest.mark.parametrize("length", [6, 7, 8, 10, 11, 14, 15, 16, 17, 33, 400])
def test_every_place_round_the_end_of_a_chunk(length: int) -> None:
    rng = np.random.default_rng(length)
    pattern = rng.bytes(length)
    finder = plain([pattern, rng.bytes(300)])
    hay = bytearray(3 * search.CHUNK)
    for place in range(search.CHUNK - length - 9, search.CHUNK + 9):
        hay[place : place + length] = pattern
        part = memoryview(hay)[: search.CHUNK + 900]
        assert finder.find(part) == {0}
        hay[place : place + length] = bytes(length)
    assert finder.find(hay) == set()


@pytest.mark.parametrize("chunk", [1, 8, 30, 1 << 20])
def test_a_number_within_a_longer_one_is_another(chunk: int, monkeypatch) -> None:
    monkeypatch.setattr(search, "CHUNK", chunk)
    finder = Finder([Needle(b"12345678", "id", bounded=True)])
    for hay in (b"12345678", b"x\n12345678\n", b"0.12345678,", b"123456789 12345678"):
        assert finder.find(hay) == {0}, hay
    for hay in (b"123456789", b"a12345678", b"0012345678 " * 9, b"12345678f"):
        assert finder.find(hay) == set(), hay


def test_many_needles_with_one_beginning_and_one_end() -> None:
    patterns = [b"customer-%05d-of-the-shop" % i for i in range(3000)]
    patterns += [b"cust-%03d" % i for i in range(900)]
    hay = b";".join([*patterns[10:20], b"customer-99999-of-the-shop", *patterns[3100:3105]])
    assert plain(patterns).find(hay * 50) == {*range(10, 20), *range(3100, 3105)}

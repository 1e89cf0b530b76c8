"""Ids become keys by one rule; keys alone decide place and order."""

from __future__ import annotations

import hashlib
import hmac
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_index import keys
from data_index.errors import DataError

SECRET = bytes(range(32))
RING = keys.derive(SECRET)

# A small alphabet, so that words tie and keys end in zero bytes.
sixteen = st.lists(st.sampled_from([0, 1, 127, 128, 255]), min_size=16, max_size=16).map(bytes)


def array(rows: list[bytes]) -> keys.Keys:
    return np.frombuffer(b"".join(rows), dtype=np.uint8).reshape(-1, 16)


def subjects(count: int) -> keys.Keys:
    return keys.subject_keys(RING, [str(n).encode() for n in range(count)])


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([0, 7, -12]), [b"0", b"7", b"-12"]),
        (pa.array([2**64 - 1], pa.uint64()), [b"18446744073709551615"]),
        (pa.array([-128], pa.int8()), [b"-128"]),
        (pa.array(["7", "007", "x y"]), [b"7", b"007", b"x y"]),
        (pa.array(["a"], pa.large_string()), [b"a"]),
        (pa.array(["b", "a", "b"]).dictionary_encode(), [b"b", b"a", b"b"]),
        (pa.array([5, 4]).dictionary_encode(), [b"5", b"4"]),
        (pa.chunked_array([["a"], ["b"]]), [b"a", b"b"]),
        (pa.chunked_array([], pa.string()), []),
        (pa.array(["x", "a", "b"]).slice(1), [b"a", b"b"]),
    ],
)
def test_ids_become_bytes(column, expected):
    assert keys.canonical_ids(column, "it") == expected


def test_an_integer_and_its_digits_are_the_same_id():
    assert keys.canonical_ids(pa.array([42]), "") == keys.canonical_ids(pa.array(["42"]), "")


def test_composed_and_decomposed_text_is_the_same_id():
    composed, decomposed = "Zo\u00eb", "Zoe\u0308"
    assert composed != decomposed
    found = keys.canonical_ids(pa.array([composed, decomposed]), "")
    assert found == [composed.encode()] * 2


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array(["zeno", None]), "1 null ids"),
        (pa.array([1, None]), "1 null ids"),
        (pa.DictionaryArray.from_arrays(pa.array([0, 1]), pa.array(["zeno", None])), "1 null ids"),
        (pa.nulls(2), "null values"),
        (pa.array(["zeno", ""]), "empty"),
        (pa.array(["zeno "]), "padded"),
        (pa.array(["\tzeno"]), "padded"),
        (pa.array(["zeno\u00a0"]), "padded"),
        (pa.array([1.0]), "double values"),
        (pa.array([True]), "bool values"),
        (pa.array([Decimal("1.5")]), "decimal"),
        (pa.array([b"zeno"]), "binary values"),
    ],
)
def test_what_is_no_id_is_refused_without_quoting_any(column, reason):
    with pytest.raises(DataError, match=reason) as error:
        keys.canonical_ids(column, "Column 'id' of f.csv")
    assert str(error.value).startswith("Column 'id' of f.csv")
    assert "zeno" not in str(error.value)


def test_a_record_and_a_subject_with_the_same_id_have_unrelated_keys():
    record, subject = keys.record_keys(RING, [b"7"]), keys.subject_keys(RING, [b"7"])
    assert not (record == subject).all()
    stone = keys.tombstone_hashes(RING.order, record)
    assert not (stone == record).all()


def test_every_subkey_is_its_own():
    other = keys.derive(bytes(32))
    found = {RING.order, RING.digest, RING.wrap, other.order, other.digest, other.wrap}
    assert len(found) == 6
    assert {len(key) for key in found} == {32}


def test_a_keyring_does_not_show_its_keys():
    assert RING.order.hex()[:8] not in repr(RING)
    assert repr(RING.order) not in repr(RING)


def test_keys_are_what_the_design_says():
    """Against HKDF-Expand (RFC 5869) and BLAKE2b of the standard library."""
    order = hmac.new(SECRET, b"sisa/1/order\x01", hashlib.sha256).digest()
    assert RING.order == order
    expected = hashlib.blake2b(b"alice", key=order, person=b"sisa.subject", digest_size=16)
    assert keys.subject_keys(RING, [b"alice"])[0].tobytes() == expected.digest()


def test_keys_of_a_fixed_secret_never_change():
    assert keys.record_keys(RING, [b"7"])[0].tobytes().hex() == "7cef589dda0141b93f0de035282dee63"
    assert keys.subject_keys(RING, [b"7"])[0].tobytes().hex() == "a216da32bef4ff26010b678105767bcf"
    assert RING.digest.hex() == "0b82a92b724fff4f9c79c7a68cf7533b1092e45cce179619e6e206b9d237844e"
    assert RING.wrap.hex() == "921f0e89be5c15b8ab99b078ab5866bc680e8abd4473d27d7a896dddcc2ebff9"
    stone = keys.tombstone_hashes(bytes(32), keys.record_keys(RING, [b"7"]))
    assert stone[0].tobytes().hex() == "a7edb0a9e74a92397f01acf849a28338"


def test_places_of_a_fixed_secret_never_change():
    shard, slice_ = keys.place(subjects(8), 5, 4)
    assert shard.tolist() == [1, 4, 2, 4, 1, 1, 4, 4]
    assert slice_.tolist() == [4, 1, 3, 3, 3, 3, 1, 4]


@given(st.lists(sixteen, max_size=40))
def test_keys_sort_as_bytes(rows):
    found = array(rows)
    order = keys.sort_order(found)
    assert [rows[i] for i in order] == sorted(rows)
    assert order.tolist() == sorted(range(len(rows)), key=lambda i: rows[i])  # stable


@given(st.lists(st.tuples(st.sampled_from([b"\0" * 16, b"\0" * 15 + b"\1"]), sixteen), max_size=40))
def test_ties_are_broken_by_the_next_column(pairs):
    first, second = array([a for a, _ in pairs]), array([b for _, b in pairs])
    assert [pairs[i] for i in keys.sort_order(first, second)] == sorted(pairs)


@given(st.lists(sixteen, max_size=20), st.lists(sixteen, max_size=20))
def test_membership_is_that_of_sets(known, asked):
    found = keys.contains(array(sorted(known)), array(asked))
    assert found.tolist() == [k in set(known) for k in asked]


def test_words_keep_the_order_of_bytes_and_all_of_them():
    found = subjects(500)
    pairs = [tuple(p) for p in keys.words(found).tolist()]
    assert pairs == [
        (int.from_bytes(k[:8], "big"), int.from_bytes(k[8:], "big")) for k in map(bytes, found)
    ]


@given(st.lists(sixteen, max_size=12), st.integers(0, 12), st.integers(0, 12))
def test_keys_go_through_arrow_unchanged(rows, start, cut):
    found = keys.to_arrow(array(rows))
    assert keys.from_arrow(found.slice(start)).tobytes() == b"".join(rows[start:])
    chunked = pa.chunked_array([found.slice(0, cut), found.slice(cut)])
    assert keys.from_arrow(chunked).tobytes() == b"".join(rows)
    assert keys.from_arrow(chunked).shape == (len(rows), 16)


def test_no_chunk_holds_no_key():
    assert keys.from_arrow(pa.chunked_array([], pa.binary(16))).shape == (0, 16)


def test_places_are_uniform():
    """Chi-square of all 35 places: 34 degrees of freedom, so over 80 once in 10,000 secrets."""
    count, shards, slices = 35_000, 7, 5
    shard, slice_ = keys.place(subjects(count), shards, slices)
    assert shard.min() == 0 and slice_.min() == 1
    seen = np.bincount(shard * slices + slice_ - 1, minlength=shards * slices)
    assert len(seen) == shards * slices
    expected = count / (shards * slices)
    assert ((seen - expected) ** 2 / expected).sum() < 80


def test_a_place_depends_on_the_subject_alone():
    found = subjects(300)
    shard, slice_ = keys.place(found, 8, 4)
    some = np.random.default_rng(0).permutation(300)[:50]
    again = keys.place(found[some], 8, 4)
    assert again[0].tolist() == shard[some].tolist()
    assert again[1].tolist() == slice_[some].tolist()


def test_the_number_of_slices_moves_no_subject_to_another_shard():
    found = subjects(300)
    assert keys.place(found, 8, 4)[0].tolist() == keys.place(found, 8, 11)[0].tolist()

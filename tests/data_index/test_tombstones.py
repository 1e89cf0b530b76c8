"""Tombstones meet the keys they were made of, in every epoch, and nobody without the secret."""

from __future__ import annotations

import os

import numpy as np
import pytest
from cryptography.hazmat.primitives.keywrap import aes_key_wrap

from data_index import keys
from data_index.errors import ConfigurationError, ExactnessError
from data_index.storage import Store
from data_index.tombstones import Epochs

RING = keys.derive(bytes(range(32)))
ALICE, BOB, CAROL = (keys.subject_keys(RING, [n]) for n in (b"alice", b"bob", b"carol"))
ALL = np.concatenate([ALICE, BOB, CAROL])


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path)


def add_epoch(store, number):
    store.put_new(f"epochs/{number:04d}.key", aes_key_wrap(RING.wrap, os.urandom(32)))


def test_the_first_opening_makes_an_epoch_and_later_ones_find_it(store):
    first = Epochs.open(store, RING)
    assert first.numbers == (1,)
    assert Epochs.open(store, RING) == first
    assert list(store.list()) == ["epochs/0001.key"]


def test_an_epoch_key_is_random_and_stored_wrapped_only(store, tmp_path):
    first = Epochs.open(store, RING)
    other = Epochs.open(Store(tmp_path / "other"), RING)
    assert first.secrets != other.secrets
    assert first.secrets[0] not in store.read_unchecked("epochs/0001.key")
    assert first.secrets[0].hex() not in repr(first)
    assert first.tombstones(ALICE).tobytes() != other.tombstones(ALICE).tobytes()


def test_another_secret_is_refused(store):
    Epochs.open(store, RING)
    with pytest.raises(ConfigurationError, match="secret is not the one"):
        Epochs.open(store, keys.derive(bytes(32)))


def test_a_damaged_epoch_key_is_refused(store):
    Epochs.open(store, RING)
    path = store.path("epochs/0001.key")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ConfigurationError, match="secret is not the one"):
        Epochs.open(store, RING)
    path.write_bytes(b"")
    with pytest.raises(ConfigurationError, match="secret is not the one"):
        Epochs.open(store, RING)


def test_a_tombstone_meets_its_key_and_no_other(store):
    epochs = Epochs.open(store, RING)
    stones = epochs.tombstones(BOB)
    assert epochs.meets(stones, ALL).tolist() == [False, True, False]
    assert epochs.meets(keys.empty(), ALL).tolist() == [False] * 3
    assert epochs.meets(stones, keys.empty()).tolist() == []
    assert stones.tobytes() != BOB.tobytes()


def test_tombstones_of_every_live_epoch_are_met(store):
    stones = Epochs.open(store, RING).tombstones(ALICE)
    add_epoch(store, 2)
    both = Epochs.open(store, RING)
    assert both.numbers == (1, 2)
    later = both.tombstones(BOB)
    assert (later == keys.tombstone_hashes(both.secrets[1], BOB)).all()
    stones = np.concatenate([stones, later])
    assert both.meets(stones, ALL).tolist() == [True, True, False]


def test_without_its_epoch_a_tombstone_means_nothing(store):
    stones = Epochs.open(store, RING).tombstones(ALICE)
    add_epoch(store, 2)
    store.delete(["epochs/0001.key"])
    left = Epochs.open(store, RING)
    assert left.numbers == (2,)
    assert not left.meets(stones, ALL).any()


def test_a_missing_epoch_that_has_tombstones_is_told(store):
    """Otherwise erased rows could come back unnoticed, after a store was mounted empty."""
    with pytest.raises(ExactnessError, match="lacks the key of tombstone epoch 1"):
        Epochs.open(store, RING, {1})
    assert list(store.list()) == []
    Epochs.open(store, RING)
    assert Epochs.open(store, RING, {1}).numbers == (1,)

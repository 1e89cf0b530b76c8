"""Tombstones meet the keys they were made of, in every epoch, and nobody without the secret."""

from __future__ import annotations

import numpy as np
import pytest

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


def opened(store, *numbers):
    """The epochs, each made if it is not there."""
    for number in numbers or (1,):
        Epochs.make(store, RING, number)
    return Epochs.open(store, RING, numbers or (1,))


def test_the_first_opening_makes_an_epoch_and_later_ones_find_it(store):
    first = opened(store)
    assert first.numbers == (1,)
    assert opened(store) == first
    assert list(store.list()) == ["epochs/0001.key"]


def test_an_epoch_key_is_random_and_stored_wrapped_only(store, tmp_path):
    first = opened(store)
    other = opened(Store(tmp_path / "other"))
    assert first.secrets != other.secrets
    assert first.secrets[0] not in store.read_unchecked("epochs/0001.key")
    assert first.secrets[0].hex() not in repr(first)
    assert first.tombstones(ALICE).tobytes() != other.tombstones(ALICE).tobytes()


def test_another_secret_is_refused(store):
    opened(store)
    with pytest.raises(ConfigurationError, match="secret is not the one"):
        Epochs.open(store, keys.derive(bytes(32)), (1,))


def test_a_damaged_epoch_key_is_refused(store):
    opened(store)
    path = store.path("epochs/0001.key")
    path.write_bytes(path.read_bytes()[:-1] + b"\0")
    with pytest.raises(ConfigurationError, match="secret is not the one"):
        opened(store)
    path.write_bytes(b"")
    with pytest.raises(ConfigurationError, match="secret is not the one"):
        opened(store)


def test_a_tombstone_meets_its_key_and_no_other(store):
    epochs = opened(store)
    stones = epochs.tombstones(BOB)
    assert epochs.meets(stones, ALL).tolist() == [False, True, False]
    assert epochs.meets(keys.empty(), ALL).tolist() == [False] * 3
    assert epochs.meets(stones, keys.empty()).tolist() == []
    assert stones.tobytes() != BOB.tobytes()


def test_tombstones_of_every_live_epoch_are_met(store):
    stones = opened(store).tombstones(ALICE)
    both = opened(store, 1, 2)
    assert both.numbers == (1, 2)
    later = both.tombstones(BOB)
    assert (later == keys.tombstone_hashes(both.secrets[1], BOB)).all()
    stones = np.concatenate([stones, later])
    assert both.meets(stones, ALL).tolist() == [True, True, False]


def test_without_its_epoch_a_tombstone_means_nothing(store):
    stones = opened(store, 1, 2).tombstones(ALICE)
    Epochs.destroy(store, 1)
    left = opened(store, 2)
    assert left.meets(left.tombstones(ALICE), ALICE).all()
    Epochs.destroy(store, 2)
    third = opened(store, 3)
    assert third.numbers == (3,)
    assert not third.meets(stones, ALL).any()


def test_the_key_of_a_destroyed_epoch_that_a_restored_copy_brings_back_goes_again(store):
    opened(store, 1, 2)
    assert Epochs.open(store, RING, (2,)).numbers == (2,)
    assert list(store.list()) == ["epochs/0002.key"]


def test_the_key_of_an_epoch_in_the_making_is_left_alone(store):
    opened(store, 1, 2)
    assert Epochs.open(store, RING, (1,)).numbers == (1,)
    assert list(store.list()) == ["epochs/0001.key", "epochs/0002.key"]


def test_a_missing_epoch_is_told(store):
    """Otherwise erased rows could come back unnoticed, after a store was mounted empty."""
    with pytest.raises(ExactnessError, match="lacks the key of tombstone epoch 1"):
        Epochs.open(store, RING, (1,))
    assert list(store.list()) == []

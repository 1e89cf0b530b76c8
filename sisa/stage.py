"""Stage keys and the chain.

    key[s, 0] = H(shard, training digest)
    key[s, r] = H(key[s, r-1], shard, slice, logical digest of this slice's rows, training digest)

A slice without records is the identity: it has no stage, and its parent's key stands.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from data_index.storage import canonical_json, sha256
from data_index.view import PartitionView


@dataclass(frozen=True, slots=True)
class Link:
    """One stage of a chain.

    Attributes:
        shard: From 0.
        slice: From 1.
        key: Its stage key, hex.
        parent: Key of the stage before, or of the shard's root.
        rows: Records of its own slice.
    """

    shard: int
    slice: int
    key: str
    parent: str
    rows: int


def root_key(shard: int, training: str) -> str:
    """Key of a shard before any stage."""
    return sha256(canonical_json([shard, training]))


def chain(shard: int, views: Iterable[PartitionView], training: str) -> tuple[Link, ...]:
    """The stages of one shard over its partitions.

    Args:
        shard: From 0.
        views: Its partitions in slice order; none is empty.
        training: The training digest.
    """
    links: list[Link] = []
    parent = root_key(shard, training)
    for view in views:
        key = sha256(canonical_json([parent, shard, view.slice, view.logical, training]))
        links.append(Link(shard, view.slice, key, parent, view.rows))
        parent = key
    return tuple(links)

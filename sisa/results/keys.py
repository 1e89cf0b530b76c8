"""Documents of signing keys and tombstone epochs."""

from __future__ import annotations

from typing import ClassVar

from sisa.results.base import Result


class Epoch(Result):
    """A live tombstone epoch."""

    number: int
    """Its number, from 1."""

    opened: str
    """When it was opened, ISO 8601 in UTC."""

    closed: str | None
    """When another one followed it; null for the one that new tombstones are made under."""

    over: str | None
    """From when on its key may be destroyed: `runtime.erasure.backups` later."""

    tombstones: int
    """Count of its tombstones."""

    waiting: int
    """Count of those that open requests made; while there is one, it is kept."""


class KeysShown(Result):
    """`sisa keys list`."""

    signing_key: str
    """Id of the key that certificates and the log are signed with: sha256 of the public half."""

    trusted: tuple[str, ...]
    """Ids of all keys whose signature counts, former ones included."""

    epochs: tuple[Epoch, ...]
    """Live tombstone epochs, the last one is the open one."""


class KeysRotated(Result):
    """`sisa keys rotate`: of tombstone epochs or, with `--signing`, of the signing key."""

    either: ClassVar[tuple[tuple[str, ...], ...]] = (
        ("epoch", "destroyed", "epochs"),
        ("signing_key", "former_signing_key", "public_key", "former_public_key"),
    )

    epoch: int | None = None
    """Number of the epoch that new tombstones are made under from now on."""

    destroyed: tuple[int, ...] | None = None
    """Numbers of the epochs whose keys are destroyed: their tombstones mean nothing any more."""

    epochs: tuple[Epoch, ...] | None = None
    """The live epochs."""

    signing_key: str | None = None
    """Id of the key that certificates are signed with from now on: sha256 of the public half."""

    former_signing_key: str | None = None
    """Id of the one before."""

    public_key: str | None = None
    """File of the new public half."""

    former_public_key: str | None = None
    """File of the former public half, which older certificates are checked with."""

"""The keys of a workspace: shown, and rotated.

Rotating tombstone epochs means a new key for new tombstones, and an end to those that outlived
backups: a tombstone is there to keep a person out whom an old copy would bring back. When the last
copy that could is gone, the key of its epoch is destroyed, and the tombstone means nothing any
more.
"""

from __future__ import annotations

from datetime import datetime

from data_index.requests import iso
from data_index.tombstones import Epochs
from sisa import config
from sisa.context import Context
from sisa.results import Epoch, KeysRotated, KeysShown


def shown(context: Context) -> KeysShown:
    """All keys but the secret: signing keys by their id, live tombstone epochs."""
    return KeysShown(
        signing_key=context.signing.signer().key_id,
        trusted=tuple(sorted(context.signing.trusted())),
        epochs=epochs(context),
    )


def rotate_signing_key(context: Context) -> KeysRotated:
    """Sign with a new key from now on; the old one vouches for it, and its public half is kept.

    Raises:
        ConfigurationError: There is no signing key, or it comes from the environment.
        BusyError: Another process is writing.
    """
    ledger, signing = context.ledger, context.signing
    with ledger.writer():
        old, new = signing.rotate(lambda _, public: ledger.add_signer(public))
    return KeysRotated(
        signing_key=new.key_id,
        former_signing_key=old.key_id,
        public_key=str(signing.public_file()),
        former_public_key=str(signing.public_file(old.key_id)),
    )


def rotate(context: Context, dry_run: bool = False) -> KeysRotated:
    """Open an epoch, unless the open one has no tombstone, and destroy those that are over.

    Args:
        context: The workspace.
        dry_run: Change nothing and say what would be done.

    Raises:
        BusyError: Another process is writing.
    """
    ledger, now = context.ledger, context.ledger.clock()
    with ledger.writer() as lease:
        before = epochs(context)
        over = [e.number for e in before if _over(e, now)]
        number = before[-1].number + (before[-1].tombstones > 0)
        if not dry_run:
            if number > before[-1].number:
                Epochs.make(context.store, context.ring, number)
                ledger.open_epoch(number)
            ledger.destroy_epochs(over, lease)
            for one in over:
                Epochs.destroy(context.store, one)
            ledger.compact()
        live = before if dry_run else epochs(context)
    return KeysRotated(epoch=number, destroyed=tuple(over), epochs=live)


def epochs(context: Context) -> tuple[Epoch, ...]:
    """The live tombstone epochs; the last is the open one."""
    keep = config.period(context.config.runtime.erasure.backups)
    return tuple(
        Epoch(
            number=e.number,
            opened=e.opened,
            closed=e.closed,
            over=e.closed and iso(datetime.fromisoformat(e.closed) + keep),
            tombstones=e.tombstones,
            waiting=e.waiting,
        )
        for e in context.ledger.epochs()
    )


def _over(epoch: Epoch, now: datetime) -> bool:
    """Whether no copy is left that could bring back whom it keeps out, nor any open request."""
    past = epoch.over is not None and datetime.fromisoformat(epoch.over) <= now
    return past and epoch.waiting == 0

"""Open a workspace: settings, secret, store, ledger, messenger and executor, put together."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from data_index import keys, restore
from data_index.keys import Keyring
from data_index.ledger import Ledger
from data_index.log import Log
from data_index.storage import Store
from data_index.tombstones import Epochs
from sisa import config, secrets
from sisa.config import Config
from sisa.context import Context, Reporter
from sisa.errors import ConfigurationError, RestoredError
from sisa.executor import Executor, ProcessExecutor
from sisa.outbox import Order, Outbox
from sisa.signing_keys import SigningKeys


def opened(
    root: Path,
    settings: Sequence[str],
    report: Reporter,
    environment: Mapping[str, str],
    restored: bool,
) -> tuple[Context, Outbox]:
    """Put together what a folder with sisa.yaml names.

    Args:
        root: The workspace itself.
        settings: `a.b=value` on top of sisa.yaml.
        report: Where progress and warnings go.
        environment: Overlays sisa.yaml and may hold the secret.
        restored: An older copy of ledger or store was restored: bring both together first.

    Raises:
        NotFoundError: There is no sisa.yaml.
        ConfigurationError: The configuration or the secret is wrong.
        RestoredError: An older copy of ledger or store was restored.
        ExactnessError: Ledger and store belong to different histories.
    """
    settled = config.load(root, settings, environment)
    ring = keys.derive(secrets.read(root, environment))
    store = Store(config.located(root, settled.runtime.store))
    signing = SigningKeys.of(root, environment)
    log = Log(store, signing.signer, signing.trusted)
    ledger = Ledger(settled.runtime.ledger, root, log=log)
    _settle(ledger, store, ring, report, restored)
    outbox = Outbox(_order(root, store, settled), ledger, report.warn)
    context = Context(
        folder=root,
        config=settled,
        ring=ring,
        signing=signing,
        store=store,
        ledger=ledger,
        make_executor=lambda: _executor(root, settled),
        report=report,
        published=outbox.published,
        purge_mirror=outbox.purge,
    )
    return context, outbox


def _settle(ledger: Ledger, store: Store, ring: Keyring, report: Reporter, restored: bool) -> None:
    """Have ledger and store agree, and a tombstone epoch open."""
    try:
        try:
            restore.require_whole(ledger, store)
        except RestoredError:
            if not restored:
                raise
            with ledger.writer() as lease:
                report.warn(restore.restore(ledger, store, ring, lease).sentence)
            restore.require_whole(ledger, store)
        if not ledger.live_epochs():
            Epochs.make(store, ring, 1)
            ledger.open_epoch(1)
        Epochs.open(store, ring, ledger.live_epochs())
    except OSError as error:
        raise ConfigurationError(
            f"The store {store.root} cannot be written: {error.strerror}.",
            "Check runtime.store and its permissions.",
        ) from None


def _order(root: Path, store: Store, settled: Config) -> Order:
    """What a messenger is told of a workspace."""
    return Order(
        folder=str(root),
        store=str(store.root),
        ledger=settled.runtime.ledger,
        tracking=settled.runtime.tracking,
        quorum=settled.runtime.erasure.quorum,
        import_paths=(str(root),),
    )


def _executor(root: Path, settled: Config) -> Executor:
    """The executor that the settings name; Ray is loaded for its own only."""
    section = settled.runtime.executor
    if section.kind == "process":
        return ProcessExecutor(section.workers)
    made: Executor = importlib.import_module("cluster.executor").RayExecutor(section, root)
    return made

"""Takes single rules of durability and of order away from this process, for good."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

Patch = Callable[[], None]


def _callers() -> list[str]:
    """Names of the functions that led here, the innermost first."""
    names: list[str] = []
    frame: Any = sys._getframe(2)
    while frame is not None and len(names) < 40:
        names.append(frame.f_code.co_name)
        frame = frame.f_back
    return names


def _top(path: Path) -> str:
    """The folder of the store that a path lies in; empty for the store itself."""
    parts = path.parts
    if "store" not in parts:
        return "workspace"
    return parts[parts.index("store") + 1] if parts[-1] != "store" else ""


def skip_fsync(by: str, folder: str | None = None, kind: str = "", caller: str = "") -> Patch:
    """No fsync where a function of the storage calls for it.

    Args:
        by: The function: `flush`, `_place`, `put_new`, `delete`, `remove_scratch`.
        folder: Only in this folder of the store.
        kind: `file` or `folder`, or either.
        caller: Only if this function called for it.
    """

    def remove() -> None:
        import data_index.storage as storage

        real = storage._fsync

        def fsync(path: Path) -> None:
            names = _callers()
            skipped = (
                by in names
                and (folder is None or _top(path) == folder)
                and kind in ("", "folder" if path.is_dir() else "file")
                and (not caller or caller in names)
            )
            if not skipped:
                real(path)

        storage._fsync = fsync

    return remove


def skip_flush(caller: str, nth: int | None = None) -> Patch:
    """No flush of the store where a function calls for it, or only not for the nth time in turn."""

    def remove() -> None:
        from data_index.storage import Store

        real, count = Store.flush, [0]

        def flush(self: Store) -> None:
            by = next(name for name in _callers() if name != "call")  # that of a watch lies between
            if by == caller:
                count[0] += 1
                if nth is None or count[0] % 2 == nth:
                    return
            real(self)

        Store.flush = flush  # type: ignore[method-assign]

    return remove


segment_first = skip_flush("flush", 1)
"""The writer of the stage log flushes twice: the first time makes checkpoints durable."""

segment_late = skip_flush("flush", 0)


def ledger_unsynced() -> None:
    """SQLite in WAL mode may lose the last commits if it does not sync each."""
    import data_index.database as database

    real = database._engine

    def engine(*args: Any) -> Any:
        made = real(*args)

        @database.sa.event.listens_for(made, "connect")
        def _connect(dbapi: Any, _: Any) -> None:
            dbapi.cursor().execute("PRAGMA synchronous=NORMAL")

        return made

    database._engine = engine


def _later(holder: Any, name: str, trigger: Any, after: str, answer: Callable[..., Any]) -> None:
    """Put a call off until another one is done."""
    real, waiting = getattr(holder, name), []

    def put_off(*args: Any, **more: Any) -> Any:
        waiting.append(lambda: real(*args, **more))
        return answer(*args)

    whole = getattr(trigger, after)

    def then(*args: Any, **more: Any) -> Any:
        done = whole(*args, **more)
        while waiting:
            waiting.pop()()
        return done

    setattr(holder, name, put_off)
    setattr(trigger, after, then)


def purge_before_rewrite() -> None:
    """The rows are still in the files that are current when it is swept."""
    from sisa import closing, forget

    _later(forget, "_rewrite", closing, "close", lambda c, lease, taken: tuple(taken.requests))


def certificate_before_purge() -> None:
    """The certificate says what is not done yet."""
    from sisa import certificate, purge

    _later(purge, "purge", certificate, "issue_all", lambda *_: purge.Swept({}))


def purge_before_publish() -> None:
    """What is current is swept as if its successor were."""
    from sisa import publish

    real = publish._publish

    def swept(context: Any, lease: Any, generation: Any, *more: Any) -> Any:
        entry = context.ledger.generation()
        if entry is not None and entry.manifest is not None:
            keep = {s.file.path for c in generation.constituents for s in c.stages if s.file}
            store = context.store
            store.delete([p for p in store.list("checkpoints") if p not in keep])
        return real(context, lease, generation, *more)

    publish._publish = swept


def tombstones_late() -> None:
    """The requests first, their tombstones in a transaction of their own."""
    from data_index import requests
    from data_index.tables import tombstones
    from sisa import forget, request

    real, whole = requests.add, forget.accept
    waiting: list[Any] = []

    def add(connection: Any, *more: Any) -> Any:
        done = real(connection, *more)
        mine = tombstones.c.request_id.in_([r.id for r in done])
        waiting.extend(map(dict, connection.execute(tombstones.select().where(mine)).mappings()))
        connection.execute(tombstones.delete().where(mine))
        return done

    def accept(context: Any, *args: Any, **more: Any) -> Any:
        done = whole(context, *args, **more)
        if waiting:
            with context.ledger.write() as connection:
                connection.execute(tombstones.insert(), waiting)
            waiting.clear()
        return done

    requests.add = add
    forget.accept = request.accept = accept


def acknowledged_early() -> None:
    """The answer goes out before the transaction is committed."""
    from sisa import forget

    holder: Any = importlib.import_module("sisa.accept")
    real = holder._enter

    def enter(*args: Any) -> Any:
        made, fresh = real(*args)
        for request in made.values():
            forget.acknowledge(request.id)  # type: ignore[attr-defined]
        return made, fresh

    holder._enter = enter


def publish_unchecked() -> None:
    """Whatever was accepted since the build began."""
    from data_index.ledger import Ledger, add_generation

    def publish(
        self: Ledger,
        manifest: Any,
        digest: str,
        reason: str,
        version: int,
        lease: Any,
        along: Any,
        samples: Any = None,
    ) -> int:
        with self.write() as connection:
            lease.check(connection)
            along(connection)
            return add_generation(connection, manifest, digest, reason, self.clock(), samples)

    Ledger.publish = publish  # type: ignore[method-assign,assignment]


def lease_unchecked() -> None:
    """Whoever is the writer by now."""
    from data_index.leases import Lease

    Lease.check = lambda self, connection: None  # type: ignore[method-assign]

"""Leases with a fencing token: one writer at a time, and none that has lost its lease commits."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

import sqlalchemy as sa

from data_index.errors import BusyError, SisaError
from data_index.tables import leases

LIFE = timedelta(seconds=30)
"""How long a lease outlives its last renewal, if its holder cannot be seen to be dead."""


@dataclass(frozen=True, slots=True)
class Lease:
    """A lease that is held: its name and the token that no later holder has."""

    name: str
    token: int

    def check(self, connection: sa.Connection) -> None:
        """Refuse to commit for one who has lost the lease.

        Raises:
            BusyError: Another one has taken it over.
        """
        token = connection.scalar(sa.select(leases.c.token).where(leases.c.name == self.name))
        if token != self.token:
            raise BusyError("Another process has taken over as writer.", "Try again.")


@contextmanager
def holding(
    write: Callable[[], AbstractContextManager[sa.Connection]],
    name: str,
    clock: Callable[[], datetime],
) -> Iterator[Lease]:
    """Hold a lease and renew it in the background.

    Raises:
        BusyError: A live process holds it.
    """
    with write() as connection:
        lease = _take(connection, name, clock())
    stop = threading.Event()
    renewer = threading.Thread(target=_renew, args=(write, lease, clock, stop), daemon=True)
    renewer.start()
    try:
        yield lease
    finally:
        stop.set()
        renewer.join()
        with write() as connection:
            connection.execute(
                leases.update()
                .where(leases.c.name == name, leases.c.token == lease.token)
                .values(holder="", expires="")
            )


def _take(connection: sa.Connection, name: str, now: datetime) -> Lease:
    row = connection.execute(sa.select(leases).where(leases.c.name == name)).first()
    if row is None:
        token = 1
        connection.execute(
            leases.insert().values(name=name, holder=_me(), token=token, expires=_until(now))
        )
        return Lease(name, token)
    if row.holder and row.expires > now.isoformat() and not _dead(row.holder):
        host, _, process, _ = row.holder.rsplit(" ", 3)
        raise BusyError(
            f"Process {process} on {host} is the {name} of this workspace.",
            "Wait until it is done and try again.",
        )
    connection.execute(
        leases.update()
        .where(leases.c.name == name)
        .values(holder=_me(), token=row.token + 1, expires=_until(now))
    )
    return Lease(name, row.token + 1)


def _renew(
    write: Callable[[], AbstractContextManager[sa.Connection]],
    lease: Lease,
    clock: Callable[[], datetime],
    stop: threading.Event,
) -> None:
    while not stop.wait(LIFE.total_seconds() / 3):
        try:
            with write() as connection:
                connection.execute(
                    leases.update()
                    .where(leases.c.name == lease.name, leases.c.token == lease.token)
                    .values(expires=_until(clock()))
                )
        except (SisaError, sa.exc.SQLAlchemyError):
            continue  # the commit checks the token; a missed renewal alone loses nothing


def _until(now: datetime) -> str:
    return (now + LIFE).isoformat()


def _me() -> str:
    return f"{socket.gethostname()} {_boot()} {os.getpid()} {_started(os.getpid())}"


def _dead(holder: str) -> bool:
    """Whether the holder is a process that this one could see, and that has ended."""
    host, boot, process, started = holder.rsplit(" ", 3)
    here = host == socket.gethostname() and boot == _boot() != ""
    return here and _started(int(process)) != started


def _boot() -> str:
    """Names this boot of the machine and this process's view of processes; empty if unknown."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{Path('/proc/self/ns/pid').readlink()}"
    except OSError:
        return ""


def _started(process: int) -> str:
    """When a process began, in clock ticks since boot; empty if there is none or it has ended."""
    try:
        stat = Path(f"/proc/{process}/stat").read_text()
    except OSError:
        return "" if Path("/proc/self").exists() else "unknown"
    fields = stat.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]

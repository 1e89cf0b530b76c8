"""What a mirror was given of which generation: from before its delivery until after its purge."""

from __future__ import annotations

import json
import uuid
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime

import sqlalchemy as sa

from data_index import changes
from data_index.errors import MovedOnError
from data_index.tables import generations, mirrored, settings

Transaction = Callable[[], AbstractContextManager[sa.Connection]]

MARK, LEFT = "mirror_mark", "mirror_left"
"""Settings: the name that a mirror knows this workspace by, and rows that no purge could drop."""


@dataclass(frozen=True, slots=True)
class MirrorPlace:
    """Where something was mirrored.

    Attributes:
        uri: The mirror's, without a password.
        experiment: Name of the experiment.
        model: Name of the registered model.
    """

    uri: str
    experiment: str
    model: str


@dataclass(frozen=True, slots=True)
class Mirrored:
    """A generation that a mirror has or may have something of.

    Attributes:
        number: The generation's.
        place: Where.
        location: Below which its artefacts lie; relative if that is the workspace.
        run: Its run, None if none is known; no artefact lies outside of its folder.
        version: Its version of the registered model, None if none is known.
    """

    number: int
    place: MirrorPlace
    location: str
    run: str | None
    version: str | None


class Mirror:
    """The ledger's memory of its mirror.

    The mark, deliveries and purges are entries of the log, since what a mirror holds outlives the
    ledger; runs and versions are not, as they are found again by the mark.

    Args:
        read: Begins a transaction of the ledger that reads.
        write: Begins one that writes.
        clock: Tells the time in UTC.
    """

    def __init__(
        self, read: Transaction, write: Transaction, clock: Callable[[], datetime]
    ) -> None:
        self._read, self._write, self._clock = read, write, clock

    def mark(self) -> str:
        """The random name that all of this workspace carries in a mirror."""
        with self._read() as connection:
            found = _setting(connection, MARK)
        if found is not None:
            return found
        with self._write() as connection:
            found = _setting(connection, MARK)
            if found is None:
                found = uuid.uuid4().hex
                changes.make(connection, self._clock(), "mirror named", {"mark": found})
            return found

    def intend(self, number: int, place: MirrorPlace, location: str) -> None:
        """Note that a generation is about to be delivered.

        Raises:
            MovedOnError: It is retired; what would be delivered now, no purge would look for.
        """
        with self._write() as connection:
            query = sa.select(generations.c.path).where(generations.c.number == number)
            if connection.scalar(query) is None:
                raise MovedOnError(f"Generation {number} was retired.", "Nothing is to be done.")
            if connection.execute(sa.select(mirrored).where(_is(number, place))).first() is None:
                body = {**_values(number, place), "location": location}
                changes.make(connection, self._clock(), "mirrored", body)

    def note(self, number: int, place: MirrorPlace, **known: str) -> None:
        """Note the run of a delivery, before anything is put into it, or its version.

        Raises:
            MovedOnError: It was purged meanwhile.
        """
        with self._write() as connection:
            update = mirrored.update().where(_is(number, place)).values(**known)
            if connection.execute(update).rowcount == 0:
                raise MovedOnError(f"Generation {number} was purged.", "Nothing is to be done.")

    def superseded(self) -> list[Mirrored]:
        """What mirrors have of all generations but the current one, the oldest first."""
        with self._read() as connection:
            last = sa.select(sa.func.max(generations.c.number)).scalar_subquery()
            query = sa.select(mirrored).where(mirrored.c.number < last).order_by(mirrored.c.number)
            return [
                Mirrored(
                    number=r.number,
                    place=MirrorPlace(r.uri, r.experiment, r.model),
                    location=r.location,
                    run=r.run,
                    version=r.version,
                )
                for r in connection.execute(query)
            ]

    def purged(self, entries: Sequence[Mirrored], left: Mapping[str, int]) -> None:
        """Forget what was purged and looked for again.

        Args:
            entries: What is gone.
            left: Rows of it that could not be dropped, by kind; they are added up.
        """
        with self._write() as connection:
            total = Counter(_left(connection)) + Counter(left)
            gone = [_values(entry.number, entry.place) for entry in entries]
            changes.make(connection, self._clock(), "mirror purged", {"gone": gone, "left": total})

    def left(self) -> dict[str, int]:
        """Rows that no purge so far could drop, by kind."""
        with self._read() as connection:
            return _left(connection)


def _left(connection: sa.Connection) -> dict[str, int]:
    return dict(json.loads(_setting(connection, LEFT) or "{}"))


def _setting(connection: sa.Connection, name: str) -> str | None:
    return connection.scalar(sa.select(settings.c.value).where(settings.c.name == name))


def _values(number: int, place: MirrorPlace) -> dict[str, int | str]:
    return {
        "number": number,
        "uri": place.uri,
        "experiment": place.experiment,
        "model": place.model,
    }


def _is(number: int, place: MirrorPlace) -> sa.ColumnElement[bool]:
    return sa.and_(*(mirrored.c[name] == value for name, value in _values(number, place).items()))

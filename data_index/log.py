"""The store's copy of the log: numbered signed objects that a restored old ledger cannot pass over.

Each entry names the sha256 of the one before, so that none can be taken out or changed, and the
ledger has a copy, so that none can be taken from the end unnoticed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

from data_index import envelope
from data_index.changes import Entry
from data_index.envelope import Signer
from data_index.errors import ExactnessError, NotFoundError, SignatureError
from data_index.storage import Store

FOLDER = "log"
PAYLOAD = "application/vnd.sisa.log+json"

Trusted = Mapping[str, Ed25519PublicKey]
"""Public keys by their id."""


class Log:
    """Numbered signed objects of one store.

    Args:
        store: Holds them.
        signer: Gives the key that signs new ones.
        trusted: Gives the public keys whose signature counts, by their id.
    """

    def __init__(
        self, store: Store, signer: Callable[[], Signer], trusted: Callable[[], Trusted]
    ) -> None:
        self._store, self._signer, self._known = store, signer, trusted
        self._vouched: dict[str, Ed25519PublicKey] = {}

    def numbers(self) -> list[int]:
        """Numbers of the entries that are there, rising."""
        names = self._store.list(FOLDER)
        return [int(n.removeprefix(f"{FOLDER}/").removesuffix(".json")) for n in names]

    def read(self, number: int) -> Entry:
        """One entry, its signature checked.

        Raises:
            ExactnessError: It is missing, damaged or not signed by a trusted key.
        """
        path = _path(number)
        try:
            data = self._store.read_unchecked(path)
            entry = Entry.parse(envelope.open_(data, PAYLOAD, {**self._known(), **self._vouched}))
        except (SignatureError, NotFoundError) as error:
            raise ExactnessError(
                f"{path} cannot be trusted. {error.message}", "Restore the store from a backup."
            ) from None
        if entry.number != number:
            raise ExactnessError(f"{path} holds another entry.", "Restore the store from a backup.")
        self._trust(entry)
        return entry

    def behind(self, last: Entry | None) -> Iterator[Entry]:
        """The entries behind one, each checked against the one before it.

        Raises:
            ExactnessError: One is missing, damaged, or follows another history.
        """
        number, digest = (last.number, last.digest) if last else (0, "")
        for wanted in range(number + 1, max(self.numbers(), default=0) + 1):
            entry = self.read(wanted)
            if entry.previous != digest:
                raise _forked(wanted)
            digest = entry.digest
            yield entry

    def write(self, entries: Sequence[Entry]) -> None:
        """Write entries, durably, in their order; one that is there already must be the same.

        Raises:
            ExactnessError: Another one has its number.
        """
        for entry in entries:
            path = _path(entry.number)
            data = envelope.sign(PAYLOAD, entry.payload, self._signer())
            if self._store.path(path).exists() or not self._store.put_new(path, data):
                self.require(entry)
            self._trust(entry)

    def require(self, entry: Entry) -> None:
        """Make sure that what is there under an entry's number is this entry.

        Raises:
            ExactnessError: It is another one.
        """
        if self.read(entry.number).digest != entry.digest:
            raise _forked(entry.number)

    def _trust(self, entry: Entry) -> None:
        if entry.kind == "signer":
            public = envelope.read_public(entry.body["public"].encode(), _path(entry.number))
            self._vouched[envelope.key_id(public)] = public


def _path(number: int) -> str:
    return f"{FOLDER}/{number:010d}.json"


def _forked(number: int) -> ExactnessError:
    return ExactnessError(
        f"The ledger and the store's log tell different histories from entry {number} on.",
        "Restore a ledger and a store that belong together.",
    )

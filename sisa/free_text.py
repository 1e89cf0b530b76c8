"""Names and reasons that come with a request; the log keeps them for ever, so they name nobody."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from sisa.errors import UsageError
from sisa.residue.needles import SHORTEST, Needle
from sisa.residue.search import Finder


def require_nameless(what: str, texts: Iterable[str | None], ids: Iterable[str]) -> None:
    """Refuse texts that contain an id; ids under `SHORTEST` bytes occur by chance.

    Args:
        what: What the texts are, for the message.
        texts: The texts; None for one that is not given.
        ids: Ids of people.

    Raises:
        UsageError: One does.
    """
    given = "\0".join(_composed(t) for t in texts if t is not None).encode()
    if not given:
        return
    patterns = {_composed(i).encode() for i in ids}
    if Finder([Needle(p, "id") for p in patterns if len(p) >= SHORTEST]).find(given):
        raise UsageError(
            f"A {what} names a person whose data are to be erased.",
            "Write it without their id: the log keeps it for ever.",
        )


def _composed(text: str) -> str:
    return unicodedata.normalize("NFC", text)

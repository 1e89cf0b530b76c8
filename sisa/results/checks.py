"""The document of `sisa verify`: checks, shards trained again, and the search for residue."""

from __future__ import annotations

from sisa.results.base import Result


class Check(Result):
    """One check of `sisa verify`; `passed` is null where nothing can be said."""

    name: str
    """Name of the check."""

    passed: bool | None
    """Whether it passed; null where nothing can be said."""

    detail: str
    """What was found, in a sentence."""


class ShardReplay(Result):
    """A shard trained again: its digest as served, and as it came out."""

    shard: int
    """The shard, from 0."""

    digest: str | None
    """Tensors digest as served, sha256 in hex; null if no stage is served."""

    replay_digest: str | None
    """Tensors digest of the replay, sha256 in hex; null if it came to none."""

    comparable: bool
    """Whether both were trained in the same environment."""

    detail: str
    """The outcome, in a few words."""


class ResidueHit(Result):
    """Something that an erasure must not leave."""

    where: str
    """Where it is, from the name of a place on; names that hold it themselves are withheld."""

    kind: str
    """What it is a form of, such as `id`, `key`, `row key`, `row digest`, `value`, `text`."""


class Residue(Result):
    """What a search for residue found."""

    files: int
    """Count of files that were searched."""

    bytes: int
    """Their size."""

    decoded: dict[str, int]
    """Count of contents that were decoded, by format, nested ones included."""

    opaque: int
    """Count of contents of no known format, searched as they are."""

    undecodable: tuple[str, ...]
    """Names of what could not be read or decoded to its end."""

    refused: tuple[str, ...]
    """Names of what came to too many bytes, or was nested too deep."""

    hits: tuple[ResidueHit, ...]
    """What was found in places of the system."""

    elsewhere: tuple[ResidueHit, ...]
    """What was found in other files of the workspace."""

    expected: int
    """In how many places of the ledger keys of open requests are, as they must be."""

    controls: dict[str, bool]
    """Whether each positive control was found."""

    valid: bool
    """Whether all of them were: otherwise nothing follows from finding nothing."""

    sought: dict[str, int]
    """How many forms were looked for, by kind."""

    short: int
    """How many ids and texts were too short to be looked for."""

    legitimate: int
    """How many ids, keys and values were not looked for because they occur in what stays."""

    digest: str
    """sha256 of the outcome, hex."""


class Verified(Result):
    """`sisa verify`."""

    exact: bool | None
    """Whether every bit is what training on the stored data gives; null if that was not, or could
    not be, shown."""

    generation: int
    """Number of the generation that was verified."""

    digest: str
    """Its digest, sha256 in hex."""

    checks: tuple[Check, ...]
    """All checks, in the order in which they ran."""

    shards: tuple[ShardReplay, ...]
    """Shards that were trained again; empty without a replay."""

    replayed: bool
    """Whether anything was trained again."""

    residue: Residue | None = None
    """What was searched for residue and found; null without `--residue`."""

    @property
    def exit_code(self) -> int:
        """4 if exactness is disproved or residue is found, 6 if something could not be compared."""
        if any(c.passed is False for c in self.checks):
            return 4
        if self.residue is not None and not self.residue.valid:
            return 6
        # what could not be decoded is listed; it does not make the search invalid
        return 6 if any(c.passed is None for c in self.checks if c.name != "residue") else 0

"""The exception tree. Every error carries its exit code and says what to do.

SisaError                   1   failure
├── UsageError              2   the call itself is wrong
├── ConfigurationError      3   sisa.yaml, a setting, or where things run
├── DataError               1   a source table does not fit the recipe
├── ExactnessError          4   bytes differ from what they must be
│   ├── SignatureError      4   a signed file was changed, or its key is not trusted
│   └── RestoredError       4   ledger and store are copies of different times
├── NotFoundError           5   no such workspace or file
├── IncompleteError         6   too little is there for an answer
├── BusyError              75   somebody else is writing; try again
│   ├── MovedOnError       75   what this was based on is no longer current
│   └── BlockedError       75   something outside keeps an erasure from its certificate
├── WorkerError             1   a shard's worker failed more often than allowed
└── DivergedError           1   a loss or a parameter is no longer a number
"""

from __future__ import annotations


class SisaError(Exception):
    """Base of every error that a user may see.

    Args:
        message: One sentence that says what is wrong, without any raw identifier.
        remedy: One sentence that says what to do, or empty.
    """

    exit_code = 1
    code = "failure"

    def __init__(self, message: str, remedy: str = "") -> None:
        super().__init__(message)
        self.message = message
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.message} {self.remedy}".strip()


class UsageError(SisaError):
    """The call itself is wrong: options that exclude each other, nothing to do."""

    exit_code = 2
    code = "usage"


class ConfigurationError(SisaError):
    """A setting is wrong, or the place where things run does not fit it."""

    exit_code = 3
    code = "configuration"


class DataError(SisaError):
    """A source table does not fit the recipe; nothing of it was taken in."""

    code = "data"


class ExactnessError(SisaError):
    """Stored bytes are not what they must be."""

    exit_code = 4
    code = "exactness"


class SignatureError(ExactnessError):
    """A signed file was changed, or is not signed by a key that is trusted."""

    code = "signature"


class RestoredError(ExactnessError):
    """Ledger and store are copies of different times; `sisa work` brings them together."""

    code = "restored"


class NotFoundError(SisaError):
    """There is no such workspace or file."""

    exit_code = 5
    code = "not_found"


class IncompleteError(SisaError):
    """There is too little for an answer: nothing trained yet, or too few votes."""

    exit_code = 6
    code = "incomplete"


class BusyError(SisaError):
    """Somebody else is writing, or something moved on meanwhile; try again."""

    exit_code = 75
    code = "busy"


class MovedOnError(BusyError):
    """What a commit was based on is no longer current; plan again on what is."""

    code = "moved_on"


class BlockedError(BusyError):
    """Something outside keeps an erasure from its certificate; all else of it is done.

    Args:
        message: One sentence that says what.
        remedy: One sentence that says what to do.
        retry: Seconds after which to try again.
    """

    code = "blocked"

    def __init__(self, message: str, remedy: str, retry: float) -> None:
        super().__init__(message, remedy)
        self.retry = retry


class WorkerError(SisaError):
    """A shard's worker failed more often than it may be retried."""

    code = "worker"


class DivergedError(SisaError):
    """A loss or a parameter is no longer a number; the last checkpoint before it is kept."""

    code = "diverged"

"""The exception tree with its exit codes; it lives in data_index, the lowest package."""

from __future__ import annotations

from data_index.errors import (
    BlockedError,
    BusyError,
    ConfigurationError,
    DataError,
    DivergedError,
    ExactnessError,
    IncompleteError,
    MovedOnError,
    NotFoundError,
    RestoredError,
    SignatureError,
    SisaError,
    UsageError,
    WorkerError,
)

__all__ = [
    "BlockedError",
    "BusyError",
    "ConfigurationError",
    "DataError",
    "DivergedError",
    "ExactnessError",
    "IncompleteError",
    "MovedOnError",
    "NotFoundError",
    "RestoredError",
    "SignatureError",
    "SisaError",
    "UsageError",
    "WorkerError",
]

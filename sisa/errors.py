"""The exception tree with its exit codes; it lives in data_index, the lowest package."""

from __future__ import annotations

from data_index.errors import (
    BusyError,
    ConfigurationError,
    DataError,
    ExactnessError,
    IncompleteError,
    MovedOnError,
    NotFoundError,
    SisaError,
    UsageError,
    WorkerError,
)

__all__ = [
    "BusyError",
    "ConfigurationError",
    "DataError",
    "ExactnessError",
    "IncompleteError",
    "MovedOnError",
    "NotFoundError",
    "SisaError",
    "UsageError",
    "WorkerError",
]

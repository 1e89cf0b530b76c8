"""A state as bytes: safetensors with nothing variable inside, and the digest of its tensors."""

from __future__ import annotations

import hashlib

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load as _load
from safetensors.numpy import save as _save

from data_index.storage import FileRef, Store, canonical_json
from sisa.errors import ExactnessError
from sisa.learners.protocol import State

FOLDER = "checkpoints"
SUFFIX = ".safetensors"


def dump(state: State) -> bytes:
    """The bytes of a state; equal states have equal bytes."""
    return bytes(_save({name: np.asarray(state[name], order="C") for name in sorted(state)}))


def load(data: bytes) -> State:
    """The inverse of `dump`; the arrays may be read-only.

    Raises:
        ExactnessError: The bytes are no safetensors file.
    """
    try:
        found: State = _load(data)
    except (SafetensorError, ValueError, KeyError) as error:
        raise ExactnessError(f"A checkpoint cannot be read: {error}.") from None
    return found


def tensors_digest(state: State) -> str:
    """sha256 over (name, dtype, shape, little-endian bytes) of all arrays in name order."""
    digest = hashlib.sha256()
    for name in sorted(state):
        array = np.asarray(state[name])
        little = np.ascontiguousarray(array.astype(array.dtype.newbyteorder("<"), copy=False))
        digest.update(canonical_json([name, array.dtype.name, list(array.shape)]))
        digest.update(little.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def read(store: Store, file: FileRef, tensors: str) -> State:
    """Load a stored state and check file and tensors.

    Raises:
        ExactnessError: The file is missing or damaged, or holds other tensors.
    """
    state = load(store.read(file))
    if tensors_digest(state) != tensors:
        raise ExactnessError(
            f"{file.path} holds other tensors than recorded.", "Restore it from a backup."
        )
    return state

"""The model as it was before, from its folder: what some edits go back to."""

from __future__ import annotations

from torch import Tensor

from sisa.approximate import bottlenecked, subjects
from sisa.approximate.edits.given import Given
from sisa.approximate.edits.mappings import check, of_module
from sisa.errors import ConfigurationError


def original_parameters(given: Given) -> dict[str, Tensor]:
    """Parameters of the original model, loaded as the model itself was.

    Raises:
        NotFoundError: There is no such folder.
        ConfigurationError: It holds no model that is known, or one of other parameters.
    """
    own = given.parameters()
    dtype = str(next(iter(own.values())).dtype).removeprefix("torch.")
    other = subjects.load(given.path("original"), dtype, str(given.subject.device))
    found = of_module(other.module)
    if not bottlenecked.alike(given.subject.module, other.module):
        raise ConfigurationError(
            "The model and its original have different bottlenecks, or one of them has none.",
            "Give two with the same bottleneck or none, or choose another method.",
        )
    check(own, found)
    check(found, own)
    return found

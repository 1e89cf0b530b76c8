"""How much of what a model lost comes back under an attack."""

from __future__ import annotations

import math

from sisa.errors import DataError


def finite(metric: float) -> float:
    """The metric as it is.

    Raises:
        DataError: It is not a finite number.
    """
    if not math.isfinite(metric):
        raise DataError("A metric of the forgotten is not a finite number.", "Look at the model.")
    return metric


def recovered_share(original: float, unlearned: float, attacked: float) -> float | None:
    """(attacked - unlearned) / (original - unlearned) of a metric of the forgotten.

    0 is nothing and 1 all; under 0 more was lost, above 1 more is known than ever. It does not
    matter whether more or less of the metric is better. Compare with the same attack on an exact
    retrain: what that learns too was never hidden.

    Args:
        original: The metric before unlearning.
        unlearned: After it.
        attacked: After the attack on the unlearned model.

    Returns:
        None where unlearning changed nothing, so that nothing could come back. That is no
        protection.

    Raises:
        DataError: A metric is not a finite number.
    """
    start = finite(unlearned)
    lost = finite(original) - start
    return (finite(attacked) - start) / lost if lost else None

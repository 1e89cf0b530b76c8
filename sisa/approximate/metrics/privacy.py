"""Whether scores give away what a model was trained on: AUC and PrivLeak."""

from __future__ import annotations

from torch import Tensor

from sisa.approximate.attacks import roc
from sisa.approximate.metrics.scores import Figure


def auc(positives: Tensor, negatives: Tensor) -> Figure:
    """Area under the ROC curve, `roc.auc`, as a figure that says why there is none.

    Positives are members, and higher scores mean *more likely a member*; here that is the forget
    set against records never trained on, so 0.5 tells nothing, and above it the model still knows.

    Args:
        positives: Scores [P] of members.
        negatives: Scores [Q] of those that are not.

    Returns:
        The area; P + Q are counted.

    Raises:
        DataError: A score is NaN.
    """
    count = len(positives) + len(negatives)
    if not len(positives) or not len(negatives):
        side = "negatives" if len(positives) else "positives"
        return Figure(None, 0, count, f"there are no {side}")
    return Figure(roc.auc(positives.cpu(), negatives.cpu(), least=1), count)


def privacy_leakage(unlearned: Figure, retrained: Figure) -> Figure:
    """PrivLeak in percent, 100 ((1-A) - (1-A_ref)) / (1-A_ref) (Shi et al. 2024, MUSE).

    0 is like the retrain. Below 0 the model still knows its forget set (too little was unlearned);
    above 0 the forget set stands out as unknown (too much). MUSE ranks by minus the Min-K loss of
    the lowest 40 % and calls the holdout 1, so that its area is 1 - A.

    Args:
        unlearned: `auc` of forget against holdout of the unlearned model.
        retrained: The same of an exact retrain.
    """
    counted = unlearned.counted + retrained.counted
    left_out = unlearned.left_out + retrained.left_out
    if unlearned.value is None or retrained.value is None:
        lacking = unlearned.reason or retrained.reason
        return Figure(None, counted, left_out, lacking)
    if retrained.value == 1:
        return Figure(None, counted, left_out, "the retrain has an area of 1: nothing to divide by")
    rest = 1 - retrained.value
    return Figure(100 * (1 - unlearned.value - rest) / rest, counted, left_out)

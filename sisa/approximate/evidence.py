"""Evidence of what an approximate method achieved, as typed parts of its statement.

A part is there whole or is the literal "not evaluated": never absent, never null, so that nobody
takes silence for a result. A number is finite, and a share is from 0 to 1. No part is of a single
item: a statistic over one means nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal, TypeVar

from pydantic import Field, ValidationError

from sisa.errors import IncompleteError, SisaError, WorkerError
from sisa.statement import Number, Part

Found = TypeVar("Found")

NOT_EVALUATED: Literal["not evaluated"] = "not evaluated"

NotEvaluated = Literal["not evaluated"]
Verdict = Literal["not evaluated", "evaluated"]

Several = Annotated[int, Field(ge=2)]
Real = Annotated[float, Field(allow_inf_nan=False)]
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class Change(Part):
    """A number of the model before and after."""

    before: Real
    """Of the base model."""

    after: Real
    """Of the model that was written."""


class Memorisation(Part):
    """What the model still says of the forget items, by teacher forcing."""

    items: Several
    """Forget items with a labelled position."""

    probability: Change
    """Mean over items of exp(-mean negative log likelihood), 0 to 1."""

    exact: Change
    """Exact memorisation: share of labelled positions whose likeliest token is the label."""

    extraction_strength: Change
    """Mean over items of the share that greedy decoding completes without an error, 0 to 1."""


class Utility(Part):
    """What the model says of items that it should keep."""

    items: Several
    """Items with a labelled position; the retain file's, or others that were held out."""

    held_out: bool
    """Whether the method never saw them."""

    probability: Change
    """Mean over items of exp(-mean negative log likelihood), 0 to 1."""

    exact: Change
    """Share of labelled positions whose likeliest token is the label."""


class Continuation(Part):
    """What the model says by itself when it goes on from the beginning of forget items, greedily.

    After VerbMem and KnowMem of MUSE (Shi et al., 2024, arXiv:2407.06460), which are means of `f1`;
    theirs ask with examples, and let an answer be longer than the true one.
    """

    items: Several
    """Forget items that were continued."""

    begun: Literal["questions", "passages", "both"]
    """What was continued: a question, or the first half of a passage."""

    recall: Change
    """Mean over items of ROUGE-L's recall of the words that follow in truth, 0 to 1."""

    f1: Change
    """Mean over items of ROUGE-L's F1, 0 to 1."""


class Predictions(Part):
    """How far a classifier's answers are from those of one that never saw the forget items.

    Means over the forget items.
    """

    total_variation: Share
    """Half the sum of absolute differences of probabilities."""

    kl: Real
    """Divergence of the model from the retrained one in nats."""

    same: Share
    """Share of items of which both say the same class."""


class Oracle(Part):
    """Comparison with a model that never saw the forget items: an exact retrain."""

    items: Several
    """Forget items that both models were asked about."""

    statistic: Literal["probability", "truth ratio"]
    """What was compared, item by item."""

    distance: Share
    """Kolmogorov-Smirnov distance of the two distributions."""

    p_value: Share
    """Forget quality: p-value of the two-sided test; near 1, nothing tells the two apart."""

    predictions: Predictions | NotEvaluated
    """Distance of all answers, of a classifier."""


class Truth(Part):
    """How probable wrong answers are beside the right one: R = P(wrong) / P(right) of TOFU.

    P(wrong) is the geometric mean of exp(-mean negative log likelihood) of the wrong answers
    (Maini et al., 2024, arXiv:2401.06121, as its code has it).
    """

    items: Several
    """Forget items with a right answer and wrong ones."""

    answers: Number
    """Wrong answers of each."""

    paraphrased: bool
    """Whether the right answer is in other words than those that were learned."""

    ratio: Change
    """Mean over items of min(R, 1/R); 1 where the model takes wrong answers for as likely."""

    oracle: Oracle | NotEvaluated
    """Comparison of the ratios with those of a model that never saw the forget items."""


class Attack(Part):
    """How well one membership attack tells forget items from items that were never seen."""

    auc: Share
    """Area under the ROC curve; 0.5 is a guess."""

    tpr_at_1_percent: Share | NotEvaluated
    """True positive rate at 1% false positives, of the better direction: the forgotten may stand
    out as known or as unknown. It needs 100 items that were never seen."""

    tpr_at_01_percent: Share | NotEvaluated
    """The same at 0.1% false positives; needs 1000 items that were never seen."""


class Membership(Part):
    """Membership attacks on the model that was written."""

    members: Several
    """Forget items."""

    non_members: Several
    """Items that neither model ever saw."""

    attacks: Annotated[dict[str, Attack], Field(min_length=1)]
    """Outcome of each attack, by its name."""

    privacy_leakage: Real | NotEvaluated
    """PrivLeak of MUSE in percent: by how much the area of Min-K at 40 % is apart from that of a
    model that never saw the forget items; below 0 too little is forgotten, above 0 too much."""


class Recovery(Part):
    """How much of what was forgotten comes back."""

    metric: str
    """What is measured on the forget items, such as `probability`."""

    base: Real
    """It, of the base model."""

    unlearned: Real
    """Of the model that was written."""

    attacked: Real
    """Of that model after the attack."""

    recovered: Share
    """(attacked - unlearned) / (base - unlearned), cut to 0 to 1; 1 if nothing was forgotten."""


class Relearning(Part):
    """Fine-tuning the written model a little, in the hope that what was forgotten comes back."""

    items: Several
    """Forget items that recovery is measured on."""

    tuned_on: Literal["forget items", "other items"]
    """What it is tuned on: a part of the forget items, or items of the same kind."""

    steps: Number
    """Optimizer steps."""

    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)]
    """Learning rate."""

    recovery: Recovery
    """What came back."""


class Quantisation(Part):
    """The written model with its weights rounded to few bits."""

    items: Several
    """Forget items that recovery is measured on."""

    bits: Annotated[dict[Literal["8", "4"], Recovery], Field(min_length=1)]
    """What came back, by the bits a weight has."""


class Evidence(Part):
    """All that was measured; each part is there whole, or is "not evaluated"."""

    memorisation: Memorisation | NotEvaluated = NOT_EVALUATED
    """What the model still says of the forget items."""

    continuation: Continuation | NotEvaluated = NOT_EVALUATED
    """What it says by itself."""

    truth: Truth | NotEvaluated = NOT_EVALUATED
    """How probable wrong answers are."""

    utility: Utility | NotEvaluated = NOT_EVALUATED
    """What it says of others."""

    oracle: Oracle | NotEvaluated = NOT_EVALUATED
    """Comparison with an exact retrain."""

    membership: Membership | NotEvaluated = NOT_EVALUATED
    """Membership attacks."""

    relearning: Relearning | NotEvaluated = NOT_EVALUATED
    """Relearning attack."""

    quantisation: Quantisation | NotEvaluated = NOT_EVALUATED
    """The model at 8 and 4 bits."""

    @property
    def verdict(self) -> Verdict:
        """Whether the three attacks were all made. What they showed is for the reader to judge."""
        attacks = (self.membership, self.relearning, self.quantisation)
        return NOT_EVALUATED if NOT_EVALUATED in attacks else "evaluated"


def tried(measure: Callable[[], Found]) -> Found | SisaError:
    """What is measured, or the error that says why it cannot be.

    Raises:
        WorkerError: A machine failed, which says nothing of the model.
    """
    try:
        return measure()
    except WorkerError:
        raise
    except SisaError as error:
        return error.with_traceback(None)  # whose frames would hold the models of an attack
    except ValidationError:
        return IncompleteError("A figure of it is out of its range.")

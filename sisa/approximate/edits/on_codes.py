"""Code ablation as an edit: the codes that a forget set is tied to are taken away."""

from __future__ import annotations

from torch import nn

from sisa.approximate.batches import Batch
from sisa.approximate.edits.bottlenecks import QuantisedBottleneck, SparseBottleneck
from sisa.approximate.edits.codes import ablate, count, tied
from sisa.approximate.edits.given import Edited, Given
from sisa.approximate.edits.language_codes import Counted, Wanted, of_language
from sisa.approximate.edits.measured import labelled
from sisa.approximate.edits.passes import Labelled
from sisa.approximate.models import LanguageModel
from sisa.errors import ConfigurationError, IncompleteError

BOTTLENECKS = (QuantisedBottleneck, SparseBottleneck)


def code_ablation(
    given: Given,
    *,
    bottleneck: str | None = None,
    ratio: float = 2.0,
    least: int = 2,
    layer: int | None = None,
    codes: int | None = None,
    strongest: int = 4,
    fit_epochs: int = 100,
    fit_lr: float = 3e-3,
) -> Edited:
    """Take away the codes that the forget set uses far more often than the retain set.

    See `codes.tied`, whose rule is ours, and `codes.ablate`. A classifier must have been trained
    with a bottleneck. A language model without one gets a `ResidualBottleneck`, fitted to its
    hidden states at all positions of both sets, and keeps it: a further request finds it.

    Args:
        given: The model and its data.
        bottleneck: Name of a classifier's bottleneck; None for the only one there is.
        ratio: How many times as high the rate on the forget set must be.
        least: Examples or positions of the forget set that must use a code.
        layer: The block of a language model behind which one is fitted, from 1; None for the
            middle one.
        codes: Of that bottleneck; None for eight times as many as a hidden state has numbers.
        strongest: How many of them a position may use.
        fit_epochs: Times that each position is visited in the fit.
        fit_lr: Learning rate of the fit.

    Raises:
        ConfigurationError: A setting is wrong, or of the other kind of model.
        IncompleteError: No code is tied to the forget set.
    """
    wanted, subject = Wanted(layer, codes, strongest, fit_epochs, fit_lr), given.subject
    if isinstance(subject, LanguageModel):
        if bottleneck is not None:
            raise ConfigurationError(
                "A language model has one bottleneck at most, which needs no name.",
                "Leave out bottleneck; layer says where one is fitted.",
            )
        found = of_language(given, subject, wanted)
    elif wanted != Wanted():
        raise ConfigurationError(
            "A bottleneck is fitted to language models alone; a classifier is trained with one.",
            "Leave out layer, codes, strongest, fit_epochs and fit_lr.",
        )
    else:
        found = _of_classifier(given, bottleneck)
    return _ablated(found, ratio, least)


def _ablated(found: Counted, ratio: float, least: int) -> Edited:
    """The bottleneck's new values by their names in the model."""
    gone = tied(found.topic, found.control, ratio, least)
    if not len(gone):
        raise IncompleteError(
            "No code is used on the forget set so much more often than on the retain set.",
            "Lower ratio or least, or choose another method.",
        )
    state = ablate(found.bottleneck.state_dict(), gone)
    params = {found.prefix + name: value for name, value in state.items()}
    note = f"{len(gone)} of {len(found.topic.used)} codes were taken away."
    return Edited(params, (*found.notes, note), bottleneck=found.added)


def _of_classifier(given: Given, wanted: str | None) -> Counted:
    assert given.retain is not None
    module = given.subject.module
    name, narrow = _bottleneck(module, wanted)
    topic = count(module, narrow, _inputs(given, given.forget))
    control = count(module, narrow, _inputs(given, given.retain))
    return Counted(f"{name}." if name else "", narrow, topic, control)


def _inputs(given: Given, items: Batch) -> list[Labelled]:
    return labelled(given, items, "forget set" if items is given.forget else "retain set")


def _bottleneck(
    module: nn.Module, wanted: str | None
) -> tuple[str, QuantisedBottleneck | SparseBottleneck]:
    """Name and module of a bottleneck.

    Raises:
        ConfigurationError: There is none, or several and none is named.
    """
    found = {name: m for name, m in module.named_modules() if isinstance(m, BOTTLENECKS)}
    if wanted is not None:
        found = {name: m for name, m in found.items() if name == wanted}
    if len(found) != 1:
        raise ConfigurationError(
            f"The model has {len(found)} bottlenecks of that name."
            if wanted is not None
            else f"The model has {len(found)} bottlenecks.",
            "Name one with bottleneck, or train the model with one.",
        )
    return next(iter(found.items()))

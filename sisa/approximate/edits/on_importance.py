"""Edits of what matters for the forget set above all: dampened, zeroed, or put back to a start."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from sisa.approximate.edits import importance_files
from sisa.approximate.edits.dampen import dampen, dampened
from sisa.approximate.edits.given import Edited, Given
from sisa.approximate.edits.importance import Importance, Kind, joined, without
from sisa.approximate.edits.mappings import check
from sisa.approximate.edits.measured import importance, of_layers
from sisa.approximate.edits.original import original_parameters
from sisa.approximate.edits.prune import Scope, Unit, prune, selected
from sisa.errors import ConfigurationError

Measure = Literal["fisher", "batch_fisher"]
"""Squared gradients of single items, or of batches: that of the authors of SSD."""


def ssd(
    given: Given,
    *,
    alpha: float = 10.0,
    strength: float = 1.0,
    measure: Measure = "fisher",
    layers: str = "*",
) -> Edited:
    """Selective synaptic dampening; see `dampen`."""
    return _dampened(given, measure, alpha, strength, layers)


def ssd_label_free(
    given: Given, *, alpha: float = 10.0, strength: float = 1.0, layers: str = "*"
) -> Edited:
    """Selective synaptic dampening by how far parameters move the logits; see `sensitivity`."""
    return _dampened(given, "sensitivity", alpha, strength, layers)


def zero(
    given: Given,
    *,
    share: float = 0.02,
    unit: Unit = "neuron",
    scope: Scope = "model",
    measure: Measure = "fisher",
    layers: str = "*",
) -> Edited:
    """Zero the share of units with the largest importance ratio; see `prune`."""
    return _pruned(given, measure, share, unit, scope, layers)


def reset(
    given: Given,
    *,
    share: float = 0.02,
    unit: Unit = "neuron",
    scope: Scope = "model",
    measure: Measure = "fisher",
    layers: str = "*",
) -> Edited:
    """Put the same units back to the values of the original model."""
    initial = original_parameters(given)
    return _pruned(given, measure, share, unit, scope, layers, initial)


def _dampened(given: Given, kind: Kind, alpha: float, strength: float, layers: str) -> Edited:
    forget, whole = _measured(given, kind, layers, rest=False)
    most = whole.count / forget.count
    if alpha >= most:  # D is at least the forget set's share of it
        raise ConfigurationError(
            f"An alpha of {alpha:g} selects nothing: no parameter is more than {most:.3g} times as "
            "important for this part of the data as for all.",
            "Lower alpha, or give more retained data.",
        )
    params = dampen(given.parameters(), forget, whole, alpha, strength)
    return Edited(params, (_told(sum(dampened(forget, whole, alpha).values()), forget),))


def _pruned(
    given: Given,
    kind: Kind,
    share: float,
    unit: Unit,
    scope: Scope,
    layers: str,
    initial: dict[str, Tensor] | None = None,
) -> Edited:
    forget, retain = _measured(given, kind, layers, rest=True)
    params = prune(given.parameters(), forget, retain, share, unit, scope, initial)
    taken = selected(forget, retain, share, unit, scope)
    return Edited(params, (_told(sum(int(mask.sum()) for mask in taken.values()), forget),))


def _measured(given: Given, kind: Kind, layers: str, rest: bool) -> tuple[Importance, Importance]:
    """Importance for the forget set, and for all data, or for all but the forget set.

    Raises:
        ConfigurationError: There is neither a retain set nor a kept importance, or that is of
            another kind or another model.
    """
    kept = None
    if "importance" in given.files:
        kept = importance_files.load(given.path("importance"), str(given.subject.device))
        check(given.subject.trainable(), kept.values)
        if kept.kind != kind:
            raise ConfigurationError(
                f"The importance that was kept is of the kind {kept.kind}, not {kind}.",
                "Set measure, or measure it anew.",
            )
    elif given.retain is None:
        raise ConfigurationError(
            "Importance is measured against other data, and there are none.",
            "Name a file with --retain, or a kept importance with --importance.",
        )
    forget = of_layers(importance(given, given.forget, kind, "forget set"), layers)
    if kept is not None:
        whole = of_layers(kept, layers)
        return forget, without(whole, forget) if rest else whole
    assert given.retain is not None
    retain = of_layers(importance(given, given.retain, kind, "retain set"), layers)
    return forget, retain if rest else joined(forget, retain)


def _told(count: int, found: Importance) -> str:
    return f"{count} of {sum(v.numel() for v in found.values.values())} parameters were selected."

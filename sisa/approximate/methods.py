"""The registry of methods of approximate unlearning: a few lines of declaration each.

Settings carry the values of the authors' code or of OpenUnlearning, which several of them gave
theirs to; what differs is told in docs/approximate.md.
"""

from __future__ import annotations

from collections.abc import Mapping

from sisa.approximate.controllers import Alternating, Dual, PerItemStop
from sisa.approximate.declaration import Data, HiddenTerm, Method, Parts, Term, objective
from sisa.approximate.edits.registry import EDITS
from sisa.approximate.objectives.hidden import distance
from sisa.approximate.objectives.rows import ce_u, divergence, margin, nll, temperature, undial
from sisa.approximate.objectives.sequences import (
    by_confidence,
    by_saturation_and_importance,
    everywhere,
    preferred,
    smallest,
    squashed,
    token_mean,
    weighted,
)
from sisa.errors import UsageError

__all__ = ["METHODS", "NEEDS", "HiddenTerm", "Method", "Parts", "Term"]

NEEDS: Mapping[str, str] = {
    "adapter": "adapter layers beside frozen weights",
    "adapters": "adapter folders of several requests",
    "alternatives": "other answers or labels for what is to be forgotten",
    "classifier": "a classifier",
    "language": "a language model",
    "log": "the update log of the model's training",
    "original": "the model as it was before",
    "retain": "data that stays",
    "similarity": "continuations of the model, compared by BLEU or ROUGE after each epoch",
    "statistics": "data that stays, or the importance of all data",
}
"""What a method may need, in words for a user."""


def _ce(weight: float = 1.0, data: Data = "retain") -> Term:
    """Learn labels."""
    return Term(nll, token_mean(), weight, data)


def _kl(weight: float = 1.0, data: Data = "retain", degree: float = 1.0) -> Term:
    """Stay near the reference."""
    return Term(divergence(degree), token_mean(), weight, data, "distribution")


def _retained(kind: str) -> tuple[Term]:
    """Choose the retain term by its name."""
    if kind not in ("nll", "kl"):
        raise UsageError(f"{kind!r} is no retain term.", "Choose nll or kl.")
    return (_ce() if kind == "nll" else _kl(),)


def _ascent() -> Parts:
    return Parts((Term(nll, weighted(everywhere)),))


def _difference(retain: str = "nll") -> Parts:
    return Parts((Term(nll, weighted(everywhere)),), _retained(retain))


def _relabelled(retain: str = "nll") -> Parts:
    return Parts((_ce(data="alternatives"),), _retained(retain))


def _dpo(beta: float = 0.1, retain: str = "nll") -> Parts:
    return Parts((Term(nll, preferred(beta), 1, "pairs", "scores"),), _retained(retain))


def _npo(beta: float = 0.1, retain: str = "nll") -> Parts:
    return Parts((Term(nll, squashed(beta), reference="scores"),), _retained(retain))


def _simnpo(beta: float = 4.5, delta: float = 0.0, retain: str = "nll") -> Parts:
    return Parts((Term(nll, squashed(beta, mean=True, delta=delta)),), _retained(retain))


def _wga(beta: float = 1.0, retain: str = "nll") -> Parts:
    return Parts((Term(nll, weighted(by_confidence(beta))),), _retained(retain))


def _satimp(beta1: float = 5.0, beta2: float = 1.0, retain: str = "nll") -> Parts:
    weights = by_saturation_and_importance(beta1, beta2)
    return Parts((Term(nll, weighted(weights)),), _retained(retain))


def _selection(fraction: float = 0.8, retain: str = "nll") -> Parts:
    return Parts((Term(nll, smallest(fraction)),), _retained(retain))


def _temperature(degree: float = 2.0, retain: str = "nll") -> Parts:
    return Parts((Term(temperature(degree), weighted(everywhere)),), _retained(retain))


def _undial(beta: float = 10.0, retain: str = "nll") -> Parts:
    return Parts(
        (Term(undial(beta), token_mean(), reference="distribution"),),
        _retained(retain),
    )


def _ce_u(skip: int = 1) -> Parts:
    return Parts((Term(ce_u, token_mean(skip)),))


def _pdu(
    epsilon: float | None = None, eta: float = 1.0, first: float = 50.0, warmup_epochs: int = 3
) -> Parts:
    dual = Dual(epsilon=epsilon, eta=eta, first=first, warmup_epochs=warmup_epochs)
    return Parts((Term(margin, token_mean()),), (_ce(),), dual)


def _rmu(layer: int = 8, coefficient: float = 6.5) -> Parts:
    return Parts(
        (HiddenTerm(distance, "control"),),
        (HiddenTerm(distance, "reference", data="retain"),),
    )


def _scrub(msteps: int = 3, degree: float = 2.0, ce: float = 1.0, kl: float = 0.5) -> Parts:
    return Parts(
        (_kl(-1.0, "forget", degree),),
        (_ce(ce), _kl(kl, degree=degree)),
        Alternating(msteps),
    )


def _icu(ce: float = 0.5, kl: float = 1.0, below: float = 0.01) -> Parts:
    return Parts(
        (Term(nll, weighted(everywhere)),),
        (_ce(ce, "neighbours"), _kl(kl, "neighbours")),
        PerItemStop(below),
    )


def _eul(kl: float = 0.8, ce: float = 1.0, language: float = 0.2) -> Parts:
    return Parts(
        (_kl(-1.0, "forget"), Term(nll, weighted(everywhere), language)),
        (_kl(kl), _ce(ce)),
        Alternating(None, "retain"),
    )


_RETAIN = "one pass over as many retained items"
_WHOLE = "a pass over all retained items each epoch"
_ONCE = "one pass of the reference, once"
_TOFU = "Maini et al., COLM 2024, arXiv:2401.06121"
_CONTROL = "Wang et al., ICLR 2025, arXiv:2406.09179"

OBJECTIVES = (
    objective(
        "gradient-ascent",
        _ascent,
        cost="nothing",
        source="Jang et al., ACL 2023, arXiv:2210.01504",
        lr=1e-5,
        epochs=10,
    ),
    objective("gradient-difference", _difference, cost=_RETAIN, source=_TOFU, lr=1e-5, epochs=10),
    objective(
        "label-flip",
        _relabelled,
        cost=_RETAIN,
        source="Graves et al., AAAI 2021, arXiv:2010.10981",
    ),
    objective("idk", _relabelled, cost=_RETAIN, source=_TOFU, lr=1e-5, epochs=10),
    objective(
        "dpo",
        _dpo,
        cost=f"one pass over the alternatives; {_RETAIN}; {_ONCE}",
        source=f"Rafailov et al., NeurIPS 2023, arXiv:2305.18290; {_TOFU}",
        lr=1e-5,
        epochs=10,
    ),
    objective(
        "npo",
        _npo,
        cost=f"{_RETAIN}; {_ONCE}",
        source="Zhang et al., COLM 2024, arXiv:2404.05868",
        lr=1e-5,
        epochs=10,
        weight_decay=0.01,
    ),
    objective(
        "simnpo",
        _simnpo,
        cost=_RETAIN,
        source="Fan et al., 2024, arXiv:2410.07163",
        gamma=0.125,
        lr=1e-5,
        epochs=10,
    ),
    objective(
        "wga",
        _wga,
        cost=_RETAIN,
        source="Wang et al., ICLR 2025, arXiv:2502.19301",
        lr=1e-5,
        epochs=5,
    ),
    objective(
        "satimp",
        _satimp,
        cost=_RETAIN,
        source="Yang et al., ICML 2025, arXiv:2505.11953",
        alpha=0.1,
        lr=1e-5,
        epochs=5,
    ),
    objective("loss-selection", _selection, cost=_RETAIN, source=_CONTROL),
    objective("temperature", _temperature, cost=_RETAIN, source=_CONTROL),
    objective(
        "undial",
        _undial,
        cost=_ONCE,
        source="Dong et al., NAACL 2025, arXiv:2402.10052",
        alpha=0.0,
        lr=1e-4,
        epochs=10,
    ),
    objective(
        "ce-u",
        _ce_u,
        cost="one more softmax over the vocabulary",
        source="Yang, 2025, arXiv:2503.01224",
        lr=2e-6,
        epochs=9,
    ),
    objective(
        "pdu",
        _pdu,
        cost=_RETAIN,
        source="Entesari et al., 2025, arXiv:2506.05314; the bound on the retain loss is ours",
        lr=1e-5,
        epochs=10,
    ),
    objective(
        "rmu",
        _rmu,
        cost="passes up to one layer only: forget and retained items, and the reference once",
        source="Li et al., ICML 2024, arXiv:2403.03218",
        alpha=1200.0,
        lr=5e-5,
        epochs=1,
    ),
    objective(
        "scrub",
        _scrub,
        cost=f"{_WHOLE}; {_ONCE}",
        source="Kurmanji et al., NeurIPS 2023, arXiv:2302.09880",
        lr=5e-4,
        epochs=10,
    ),
    objective(
        "icu",
        _icu,
        also=("similarity",),
        cost=f"one pass over neighbours; {_ONCE}; continuations of active items each epoch",
        source="Tang et al., 2024, arXiv:2407.20271",
        lr=5e-6,
    ),
    objective(
        "eul",
        _eul,
        also=("adapter",),
        cost=f"{_WHOLE}; {_ONCE}; gradients of adapter layers only",
        source="Chen and Yang, EMNLP 2023, arXiv:2310.20150",
        lr=5e-5,
    ),
)
"""Methods that the loop trains."""

METHODS: Mapping[str, Method] = {method.name: method for method in (*OBJECTIVES, *EDITS)}
"""All methods by name."""

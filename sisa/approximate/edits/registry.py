"""The edits as methods: what each is called, needs and costs. Settings are keywords of functions.

Values are the authors' where a paper or its code tells them; else the source or docs/approximate.md
says so.
"""

from __future__ import annotations

from sisa.approximate.declaration import Method, edit
from sisa.approximate.edits.on_adapters import dropped, fused
from sisa.approximate.edits.on_classes import (
    partial_label_flip,
    partial_optimisation,
    relevance_path,
)
from sisa.approximate.edits.on_codes import code_ablation
from sisa.approximate.edits.on_curvature import newton
from sisa.approximate.edits.on_importance import reset, ssd, ssd_label_free, zero
from sisa.approximate.edits.on_weights import (
    amnesiac,
    away_from_overfitting,
    mixed,
    partial_amnesiac,
)

_MEASURED = "gradients of each item, and of each retained one unless importance was kept"
_PARTIAL = "Gogineni and Nadimi, JMLR 2025, arXiv:2403.07611; settings are ours"
_PRUNING = "Pochinkov and Schoots, 2024, arXiv:2403.01267; the share is ours"

EDITS: tuple[Method, ...] = (
    edit(
        "ssd",
        ssd,
        also=("statistics",),
        cost=_MEASURED,
        source="Foster et al., AAAI 2024, arXiv:2308.07707",
    ),
    edit(
        "ssd-label-free",
        ssd_label_free,
        also=("statistics",),
        cost=_MEASURED,
        source="Foster et al., 2024, arXiv:2402.19308",
    ),
    edit("prune", zero, also=("statistics",), cost=_MEASURED, source=_PRUNING),
    edit(
        "reset",
        reset,
        also=("original", "statistics"),
        cost=f"{_MEASURED}; a second model in memory",
        source=f"{_PRUNING}; initial values instead of zeros",
    ),
    edit(
        "relevance-path",
        relevance_path,
        also=("classifier",),
        cost="a forward of 36 items of each class",
        source="Chang et al., 2024, arXiv:2410.23693; settings are of their code for CIFAR-10",
    ),
    edit(
        "amnesiac",
        amnesiac,
        also=("log",),
        cost="an update of all parameters on disk for each step of the training",
        source="Graves et al., AAAI 2021, arXiv:2010.10981",
    ),
    edit(
        "partial-amnesiac",
        partial_amnesiac,
        also=("log",),
        cost="a share of an update on disk for each step of the training",
        source=_PARTIAL,
    ),
    edit(
        "partial-label-flip",
        partial_label_flip,
        also=("classifier", "retain"),
        cost="a pass over all retained items each epoch",
        source=_PARTIAL,
    ),
    edit(
        "partial-optimisation",
        partial_optimisation,
        also=("classifier", "retain"),
        cost="one pass over as many retained items",
        source=_PARTIAL,
    ),
    edit(
        "task-vector",
        away_from_overfitting,
        cost="a training on the forget set; two copies of the parameters",
        source="Ilharco et al., ICLR 2023, arXiv:2212.04089",
    ),
    edit(
        "mix",
        mixed,
        also=("original", "retain"),
        cost="about eight passes over the retained items; a second model in memory",
        source="Wang et al., ICLR 2025, arXiv:2406.09179; the share of utility is ours",
    ),
    edit(
        "newton",
        newton,
        also=("retain",),
        cost="a forward and backward of all retained items for each of some hundred products; "
        "logits of a batch at once",
        source="Sekhari et al., NeurIPS 2021, arXiv:2103.03279; curvature and damping are ours",
    ),
    edit(
        "fuse",
        fused,
        also=("adapters", "language"),
        cost="one pass over the forget set for each adapter without statistics",
        source="Chen and Yang, EMNLP 2023, arXiv:2310.20150",
    ),
    edit(
        "drop-adapter",
        dropped,
        also=("adapter", "language"),
        cost="nothing",
        source="what was never trained with the adapter keeps its bits",
    ),
    edit(
        "code-ablation",
        code_ablation,
        also=("retain",),
        cost="a forward of both sets; a classifier must have been trained with a bottleneck; one "
        "is fitted to a language model, whose hidden states of both sets are held in memory",
        source="Wu et al., 2024, arXiv:2410.10866; thresholds are ours; for language models "
        "Farrell et al., 2024, arXiv:2410.19278",
    ),
)
"""Methods without an optimizer."""

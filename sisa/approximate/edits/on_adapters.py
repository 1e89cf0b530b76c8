"""Edits by adapters of language models: several fused in closed form, or one taken out."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from sisa.approximate.batches import Items
from sisa.approximate.edits import statistics
from sisa.approximate.edits.adapters import Grams, drop, fuse
from sisa.approximate.edits.given import Edited, Given
from sisa.approximate.edits.mappings import changed, wide
from sisa.approximate.models import LanguageModel
from sisa.errors import ConfigurationError


def fused(given: Given) -> Edited:
    """Put the closed-form fusion of several LoRA adapters into the weights; see `adapters.fuse`.

    The statistics of an adapter are those in its folder (`statistics.keep`); where none were kept
    they are measured on the forget set that is given.
    """
    subject, folders = given.subject, given.files.get("adapters", ())
    assert isinstance(subject, LanguageModel) and isinstance(given.forget, Items)
    if isinstance(folders, Path) or len(folders) < 2:
        raise ConfigurationError("Fusing needs two adapters or more.", "Repeat --adapter.")
    if subject.adapted:
        raise ConfigurationError("The model has an adapter already.", "Give its base.")
    own: list[dict[str, Tensor]] = []
    grams: list[Grams] = []
    measured = 0
    for folder in folders:
        known = statistics.kept(folder)
        with statistics.with_adapter(subject, folder) as model:
            own.append(statistics.deltas(model))
            if known is None:
                known = statistics.measure(model, given.forget, given.items_per_batch)
                measured += 1
        grams.append(known)
    params = given.parameters()
    added = fuse(own, grams)
    moved = {
        name: wide(params[name]) + value.to(params[name].device) for name, value in added.items()
    }
    notes = [f"{len(folders)} adapters were fused into {len(grams[0])} linear maps."]
    if measured:
        notes.append(f"Statistics of {measured} of them were measured on the forget set given.")
    return Edited(changed(params, moved), tuple(notes))


def dropped(given: Given, *, adapter: str = statistics.NAME) -> Edited:
    """Take an adapter out; what stays has the bits that it was trained with. See `drop`."""
    params = given.parameters()
    kept = drop(params, adapter)
    return Edited({}, (f"{len(params) - len(kept)} tensors were dropped.",), without_adapter=True)

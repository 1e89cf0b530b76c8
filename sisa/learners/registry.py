"""Finds learners by name; imports only the one that is asked for, so that NumPy's need no torch."""

from __future__ import annotations

import importlib

from sisa.config import BUILT_IN, Recipe
from sisa.learners.protocol import Learner
from sisa.learners.user_code import code_digest, code_place, find_in, resolve

__all__ = ["code_digest", "code_place", "find_in", "load"]


def load(recipe: Recipe) -> Learner:
    """The learner of a recipe: a built-in one, or `module:factory` of a torch module.

    Whether a factory can be called and its module trained shows in `init`.

    Raises:
        ConfigurationError: The factory cannot be found, or the recipe does not fit the learner.
    """
    name = recipe.learner.factory
    if name in BUILT_IN:
        learner: Learner = importlib.import_module(f"sisa.learners.{name}").load(recipe)
        return learner
    factory = resolve(name)
    from sisa.learners.torch_module import TorchLearner

    return TorchLearner.of(recipe, factory)

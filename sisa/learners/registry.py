"""Finds learners by name; imports only the one that is asked for, so that NumPy's need no torch."""

from __future__ import annotations

import importlib

from sisa.config import Recipe
from sisa.errors import ConfigurationError
from sisa.learners.protocol import Learner
from sisa.learners.user_code import code_digest, resolve

__all__ = ["BUILT_IN", "code_digest", "load"]

BUILT_IN = ("logistic", "mlp")
"""Each is a module of this package with a function `load(recipe)`."""


def load(recipe: Recipe) -> Learner:
    """The learner of a recipe: a built-in one, or `module:factory` of a torch module.

    Whether a factory can be called and its module trained shows in `init`.

    Raises:
        ConfigurationError: There is no such learner, or the recipe does not fit it.
    """
    name = recipe.learner.factory
    if name in BUILT_IN:
        learner: Learner = importlib.import_module(f"sisa.learners.{name}").load(recipe)
        return learner
    module, _, path = name.partition(":")
    if not (module and path):
        raise ConfigurationError(
            f"There is no learner {name!r}.",
            f"Use one of {', '.join(BUILT_IN)}, or module:factory of a torch module.",
        )
    factory = resolve(name)
    from sisa.learners.torch_module import TorchLearner

    return TorchLearner.of(recipe, factory)

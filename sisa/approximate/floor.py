"""A floor of utility for any method: the run ends below it, and its last epoch is undone."""

from __future__ import annotations

from dataclasses import replace
from functools import wraps
from typing import Any

from sisa.approximate.controllers import Together, UtilityFloor
from sisa.approximate.declaration import Method, Parts
from sisa.errors import UsageError

SETTING = "floor"


def with_floor(method: Method, share: float, before: float) -> Method:
    """Give the method with a floor beside its own controller.

    Args:
        method: One that the loop trains, configured.
        share: Of the utility before that must stay, above 0 and at most 1; a setting of the method
            from now on, so that a run with another floor is another run.
        before: Utility of the model before, measured as it will be after each epoch.

    Raises:
        UsageError: There is no such share, the method is an edit, or no utility to keep a share of.
    """
    build = method.build
    if not 0 < share <= 1:
        raise UsageError(f"{SETTING} is {share:g}.", "Give a share above 0 and at most 1.")
    if build is None:
        raise UsageError(f"{method.name} has no epochs that a floor could end.", "Leave it out.")
    if not before > 0:
        raise UsageError("The model has no utility on what is retained.", "Leave out the floor.")

    @wraps(build)
    def guarded(**settings: Any) -> Parts:
        parts = build(**settings)
        floor = UtilityFloor(share * before)
        return replace(parts, controller=Together((parts.controller, floor)))

    return replace(method, build=guarded, defaults={**method.defaults, SETTING: share})

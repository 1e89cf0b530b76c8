"""Settings of a call: `name=value` texts, checked against the fields that there are."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import ValidationError, create_model

from sisa.errors import ConfigurationError

NULL = ("null", "none", "")


def parse(texts: Sequence[str], fields: Mapping[str, tuple[Any, Any]]) -> dict[str, Any]:
    """Put settings on top of the defaults.

    Args:
        texts: `name=value`; the last one of a name counts.
        fields: Type and default of each setting, by name.

    Raises:
        ConfigurationError: A setting is unknown or of another type; all are named at once.
    """
    given: dict[str, str | None] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if not equals:
            raise ConfigurationError(f"--set {text} has no value.", "Write --set name=value.")
        given[name] = None if value.lower() in NULL else value
    if unknown := given.keys() - fields.keys():
        raise ConfigurationError(
            f"There is no setting {', '.join(sorted(unknown))}.",
            f"Settings are {', '.join(sorted(fields))}.",
        )
    make: Any = create_model  # its stub knows no fields by name
    try:
        found: dict[str, Any] = make("Settings", **fields).model_validate(given).model_dump()
    except ValidationError as error:
        wrong = "; ".join(f"{e['loc'][0]}: {e['msg']}" for e in error.errors())
        raise ConfigurationError(f"Settings are wrong: {wrong}.", "Correct them.") from None
    if odd := [name for name, value in found.items() if value != value]:
        raise ConfigurationError(f"{', '.join(odd)} is not a number.", "Give one.")
    return found


def plain(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Settings as JSON holds them, which knows no infinity."""
    return {n: str(v) if v in (math.inf, -math.inf) else v for n, v in settings.items()}

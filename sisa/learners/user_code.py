"""Code that a user brings as a learner: finding it, its digest, its failures."""

from __future__ import annotations

import hashlib
import importlib
import importlib.metadata
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from typing import Any

from sisa.errors import ConfigurationError

NEUTRAL = frozenset({"sisa", "torch"})
"""Never in a digest: our arithmetic has a version of its own, and a patched torch must not retrain
everything (the fingerprint tells them apart)."""


def find_in(folders: Sequence[str]) -> None:
    """Let user modules be found in folders before anywhere else, and forget those of others.

    A process that works on two workspaces would otherwise train one with the module of the other.
    """
    for folder in reversed(folders):
        with suppress(ValueError):
            sys.path.remove(folder)
        sys.path.insert(0, folder)


def resolve(name: str) -> Callable[..., Any]:
    """The callable that `module:factory` names; dots after the colon reach into classes.

    Raises:
        ConfigurationError: The module cannot be imported, or has no such function.
    """
    module, _, path = name.partition(":")
    top = module.partition(".")[0]
    if top not in NEUTRAL:
        _drop_if_elsewhere(top, _find(top, name))
    try:
        found: Any = importlib.import_module(module)
    except Exception as error:
        raise ConfigurationError(
            f"The module of the factory {name} cannot be imported: {reason(error)}.",
            "Correct learner.factory, or put the module where Python finds it.",
        ) from error
    for part in path.split("."):
        found = getattr(found, part, None)
    if not callable(found):
        raise ConfigurationError(
            f"The factory {name} cannot be called: {module} has no function {path}.",
            "Correct learner.factory.",
        )
    factory: Callable[..., Any] = found
    return factory


def reason(error: Exception) -> str:
    """An exception of user code in one line, without its final stop."""
    lines = str(error).strip().splitlines() or ["no message"]
    return f"{type(error).__name__}: {lines[0].rstrip('. ')}"


def code_digest(factory: str) -> str:
    """What stands for the code of a learner in the training digest; imports none of it.

    Args:
        factory: `learner.factory` of the recipe.

    Returns:
        Empty for a learner of ours; `name==version` where the factory's top-level package is of an
        installed distribution; else sha256 in hex over its Python files. An editable installation
        counts as files: they change and its version does not.

    Raises:
        ConfigurationError: The package cannot be found or has no source.
    """
    module, colon, _ = factory.partition(":")
    top = module.partition(".")[0]
    if not colon or top in NEUTRAL:
        return ""
    spec = _find(top, factory)
    roots = [Path(folder) for folder in spec.submodule_search_locations or ()]
    origin = Path(spec.origin) if spec.has_location and spec.origin else None
    if origin is not None:
        installed = _distribution(origin, roots[0].parent if roots else origin.parent)
        if installed:
            return installed
    files = sorted(_sources(roots) if roots else [(origin.name, origin)] if origin else [])
    if not files:
        raise ConfigurationError(
            f"The factory {factory} has no source files.", "Name a factory of a Python module."
        )
    return _digest(files)


def code_place(factory: str) -> Path:
    """The file, or the folder, of a factory's top-level module.

    Raises:
        ConfigurationError: It cannot be found or has no source.
    """
    spec = _find(factory.partition(":")[0].partition(".")[0], factory)
    for folder in spec.submodule_search_locations or ():
        return Path(folder)
    if not spec.origin:
        raise ConfigurationError(
            f"The factory {factory} has no source files.", "Name a factory of a Python module."
        )
    return Path(spec.origin)


def _find(top: str, factory: str) -> ModuleSpec:
    importlib.invalidate_caches()
    # Not `importlib.util.find_spec`: that answers with what is loaded, not with what is there.
    spec = PathFinder.find_spec(top)
    if spec is None:
        raise ConfigurationError(
            f"The module of the factory {factory} cannot be found.",
            "Correct learner.factory, or put the module where Python finds it.",
        )
    return spec


def _drop_if_elsewhere(top: str, spec: ModuleSpec) -> None:
    """Forget a loaded module of the same name from another place."""
    loaded = sys.modules.get(top)
    if loaded is None or getattr(loaded, "__file__", None) in (None, spec.origin):
        return
    for name in [n for n in sys.modules if n == top or n.startswith(f"{top}.")]:
        del sys.modules[name]


def _distribution(origin: Path, root: Path) -> str | None:
    """`name==version` of the distribution in a folder whose RECORD lists a file of it.

    Only wheels have a RECORD, and that of an editable installation does not list the sources.
    """
    listed = origin.relative_to(root).as_posix() + ","
    for distribution in importlib.metadata.distributions(path=[str(root)]):
        record = distribution.read_text("RECORD") or ""
        if any(line.startswith(listed) for line in record.splitlines()):
            return f"{distribution.metadata['Name']}=={distribution.version}"
    return None


def _sources(roots: list[Path]) -> Iterator[tuple[str, Path]]:
    """Relative path and place of each Python file under the folders of one package."""
    for root in roots:
        for folder, _, names in os.walk(root):
            for name in names:
                if name.endswith(".py"):
                    path = Path(folder, name)
                    yield path.relative_to(root).as_posix(), path


def _digest(files: list[tuple[str, Path]]) -> str:
    state = hashlib.sha256()
    for name, path in files:
        content = path.read_bytes()
        state.update(f"{name}\0{len(content)}\0".encode())
        state.update(content)
    return state.hexdigest()

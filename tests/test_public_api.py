"""What `import sisa` offers, and what it does not load."""

from __future__ import annotations

import subprocess
import sys

import pytest

import sisa
from sisa import errors


def test_exported_names_are_pinned() -> None:
    assert sorted(sisa.__all__) == ["SisaError", "Workspace"]
    assert all(getattr(sisa, name) for name in sisa.__all__)
    with pytest.raises(AttributeError):
        _ = sisa.nothing


def test_every_error_has_its_exit_code_and_a_name_of_its_own() -> None:
    kinds = [getattr(errors, name) for name in errors.__all__]
    codes = {k.code: k.exit_code for k in kinds}
    assert len(codes) == len(kinds)
    assert set(codes.values()) == {1, 2, 3, 4, 5, 6, 75}


def test_importing_the_package_is_light() -> None:
    code = "import sys, sisa; print([m for m in ('torch', 'ray', 'mlflow') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"

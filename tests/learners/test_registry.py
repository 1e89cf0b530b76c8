"""Finding learners by name, and the digest of their code."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from pydantic import ValidationError

from sisa.errors import ConfigurationError
from sisa.learners import code_digest, load

from .helpers import blobs, recipe, train

GOOD = """
from torch import nn
from .layers import WIDTH

def make(inputs, outputs, width=WIDTH):
    return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, outputs))

class Holder:
    make = staticmethod(make)

def broken(inputs, outputs):
    raise KeyError("no weights here")

constant = 3
"""

Write = Callable[[dict[str, str]], Path]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Write:
    """Writes modules into a folder that Python imports from, and forgets them afterwards."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)

    def put(files: dict[str, str]) -> Path:
        for name, content in files.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(content)
        return tmp_path

    yield put
    for name in set(sys.modules) - before:
        if name.startswith("zoo"):
            del sys.modules[name]


@pytest.fixture
def zoo(write: Write) -> Path:
    return write(
        {
            "zoo/__init__.py": "",
            "zoo/nets.py": GOOD,
            "zoo/layers.py": "WIDTH = 8",
            "zoo/sub/__init__.py": "raise RuntimeError('a digest imports nothing')",
        }
    )


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize("name", ["zoo.nets:make", "zoo.nets:Holder.make", "torch.nn:Linear"])
def test_a_factory_is_found_by_module_and_name(name: str) -> None:
    chosen = recipe(name)
    state = train(load(chosen), chosen, blobs())
    assert any(key.startswith("module.") for key in state)


@pytest.mark.parametrize("name", ["perceptron", "zoo.nets:", ":make", ""])
def test_an_unknown_learner_is_refused_with_the_names_there_are(name: str) -> None:
    with pytest.raises(ValidationError, match="cnn, logistic, mlp"):
        recipe(name)


@pytest.mark.usefixtures("zoo")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("nowhere.nets:make", "The module of the factory nowhere.nets:make cannot be found"),
        ("zoo.sub:make", "RuntimeError: a digest imports nothing"),
        ("zoo.nets:fake", "zoo.nets has no function fake"),
        ("zoo.nets:constant", "zoo.nets has no function constant"),
        ("zoo.nets:make.deeper", "has no function make.deeper"),
    ],
)
def test_a_factory_that_cannot_be_found_is_refused(name: str, said: str) -> None:
    with pytest.raises(ConfigurationError, match=said):
        load(recipe(name))


@pytest.mark.usefixtures("zoo")
def test_a_factory_that_raises_is_named_with_its_exception() -> None:
    with pytest.raises(ConfigurationError, match=r"zoo.nets:broken failed: KeyError: 'no weights"):
        load(recipe("zoo.nets:broken")).init(0)
    with pytest.raises(ConfigurationError, match=r"zoo.nets:make failed: TypeError: .*'depth'"):
        load(recipe("zoo.nets:make", {"depth": 3})).init(0)


@pytest.mark.parametrize(
    "name", ["cnn", "logistic", "mlp", "torch.nn:Linear", "sisa.learners.mlp:factory"]
)
def test_our_own_code_and_torch_enter_no_digest(name: str) -> None:
    assert code_digest(name) == ""


def test_every_module_of_the_factorys_package_decides_the_digest(zoo: Path) -> None:
    first = code_digest("zoo.nets:make")
    assert len(first) == 64
    assert first == code_digest("zoo.sub.anything:else")
    (zoo / "zoo" / "__pycache__").mkdir(exist_ok=True)
    (zoo / "zoo" / "__pycache__" / "nets.cpython-311.pyc").write_bytes(b"x")
    (zoo / "zoo" / "notes.txt").write_text("nothing that is run")
    assert code_digest("zoo.nets:make") == first
    (zoo / "zoo" / "layers.py").write_text("WIDTH = 9")
    second = code_digest("zoo.nets:make")
    (zoo / "zoo" / "sub" / "new.py").touch()
    assert len({first, second, code_digest("zoo.nets:make")}) == 3
    assert "zoo" not in sys.modules


def test_relative_imports_and_sub_packages_work_and_count(write: Write) -> None:
    folder = write(
        {
            "zoo/__init__.py": "",
            "zoo/deep/__init__.py": "from .nets import make",
            "zoo/deep/nets.py": GOOD.replace("from .layers", "from ..parts.sizes"),
            "zoo/parts/sizes.py": "WIDTH = 5",
            "zooless.py": "x = 1",
            "other/module.py": "x = 1",
        }
    )
    chosen = recipe("zoo.deep:make")
    assert load(chosen).init(0)["module.0.weight"].shape[0] == 5
    before = code_digest("zoo.deep:make")
    for outside in ("zooless.py", "other/module.py"):
        (folder / outside).write_text("x = 2")
        assert code_digest("zoo.deep:make") == before
    for inside in ("zoo/parts/sizes.py", "zoo/deep/nets.py", "zoo/deep/__init__.py"):
        (folder / inside).write_text((folder / inside).read_text() + "\n")
        after = code_digest("zoo.deep:make")
        assert after != before
        before = after


def test_moving_a_file_changes_the_digest(write: Write) -> None:
    root = write({"zoo/__init__.py": "", "zoo/a.py": "X = 1", "zoo/b.py": ""})
    first = code_digest("zoo:make")
    (root / "zoo" / "a.py").rename(root / "zoo" / "c.py")
    assert code_digest("zoo:make") != first


def test_the_digest_does_not_depend_on_where_the_code_lies(
    write: Write, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    write({"zoo.py": GOOD})
    first = code_digest("zoo:make")
    other = tmp_path_factory.mktemp("other")
    (other / "zoo.py").write_text(GOOD)
    monkeypatch.syspath_prepend(str(other))
    assert code_digest("zoo:make") == first
    (other / "zoo.py").write_text(GOOD + "\n")
    assert code_digest("zoo:make") != first


def test_a_package_without_init_counts_by_its_files(write: Write) -> None:
    root = write({"zoo/nets.py": GOOD})
    first = code_digest("zoo.nets:make")
    (root / "zoo" / "nets.py").write_text(GOOD + "#")
    assert code_digest("zoo.nets:make") != first


def test_an_installed_distribution_counts_by_its_version() -> None:
    import sklearn

    assert code_digest("sklearn.svm:SVC") == f"scikit-learn=={sklearn.__version__}"


def test_only_a_distribution_that_lists_the_files_counts_by_its_version(write: Write) -> None:
    root = write({"zoo/__init__.py": "", "zoo-1.dist-info/METADATA": "Name: zoo\nVersion: 1\n"})
    (root / "zoo-1.dist-info" / "RECORD").write_text("__editable__.zoo-1.pth,,\n")
    assert len(code_digest("zoo:make")) == 64
    (root / "zoo-1.dist-info" / "RECORD").write_text("zoo/__init__.py,sha256=x,0\n")
    assert code_digest("zoo:make") == "zoo==1"


@pytest.mark.parametrize("name", ["nowhere:make", "sys:exit", ".nets:make"])
def test_code_that_has_no_files_is_refused(name: str) -> None:
    with pytest.raises(ConfigurationError, match="factory"):
        code_digest(name)


def test_finding_a_learner_and_its_digest_needs_no_torch() -> None:
    code = (
        "import sys; from sisa.learners import code_digest; code_digest('torchgen:x'); "
        "sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0

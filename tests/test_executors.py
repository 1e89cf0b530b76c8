"""What every executor does: the same bits, the same errors, and it outlives its workers."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pytest
import torch

from sisa.config import ExecutorSection, Recipe
from sisa.errors import ConfigurationError, WorkerError
from sisa.executor import Executor, ProcessExecutor

from .shards import ID, NOTE, SHARDS, SLICES, Bench, Counted, Digests, recipe

Make = Callable[..., Executor]

LEARNERS = {
    "logistic": recipe("logistic"),
    "mlp": recipe("mlp", {"hidden": [16], "dropout": 0.1}, threads=2, batch_size=256),
}


@pytest.fixture(scope="session")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture
def bench(shared: Path, tmp_path: Path) -> Bench:
    outputs = tmp_path / "outputs"
    outputs.mkdir()
    return Bench(shared, outputs)


@pytest.fixture(scope="session")
def expected(shared: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Digests]:
    """What one child process makes of each recipe."""
    bench = Bench(shared, tmp_path_factory.mktemp("expected"))
    with closing(ProcessExecutor(1)) as executor:
        return {name: bench.train(executor, r) for name, r in LEARNERS.items()}


@pytest.fixture(params=["process", pytest.param("ray", marks=pytest.mark.ray)])
def make(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Make]:
    """Makes an executor of a number of workers; no run may leave a trace in this process."""

    def on_ray(workers: int, cpus: float = 1) -> Executor:
        section = ExecutorSection(workers=workers, cpus_per_shard=cpus)
        made: Executor = importlib.import_module("cluster.executor").RayExecutor(section, tmp_path)
        return made

    if request.param == "ray":
        request.getfixturevalue("local_ray")
    before = torch.get_num_threads(), environment()
    with ExitStack() as stack:
        kind = (
            on_ray if request.param == "ray" else lambda workers, cpus=1: ProcessExecutor(workers)
        )
        yield lambda *size: stack.enter_context(closing(kind(*size)))
    assert (torch.get_num_threads(), environment()) == before


def environment() -> dict[str, str]:
    return {n: v for n, v in os.environ.items() if n != "PYTEST_CURRENT_TEST"}


@pytest.mark.parametrize("learner", LEARNERS)
@pytest.mark.parametrize(("workers", "cpus"), [(1, 2), (2, 1)])
def test_the_bits_do_not_depend_on_where_a_shard_is_trained(
    make: Make, bench: Bench, expected: dict[str, Digests], learner: str, workers: int, cpus: int
) -> None:
    found = bench.train(make(workers, cpus), LEARNERS[learner])
    assert len(found) == SHARDS * SLICES
    assert found == expected[learner]


def test_a_killed_worker_is_replaced_and_its_shard_done_again(
    make: Make, bench: Bench, tmp_path: Path
) -> None:
    marker = tmp_path / "marker"
    once = recipe("acting:Model", {"act": "die", "at": 10, "marker": str(marker)})
    found = bench.train(make(1), once, shards=2)
    assert marker.exists()
    assert found == bench.train(make(1), once, shards=2)
    assert len(found) == 2 * SLICES


@pytest.mark.parametrize(
    "learner",
    [
        pytest.param(recipe("acting:Model", {"act": "die", "at": 10}), id="killed"),
        pytest.param(recipe("acting:break_down"), id="exits"),
    ],
)
def test_a_shard_whose_worker_always_dies_is_given_up(
    make: Make, bench: Bench, learner: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = make(1)
    for module in ("sisa.executor", type(executor).__module__):
        monkeypatch.setattr(f"{module}.RETRIES", 1)
    with pytest.raises(WorkerError, match=r"The worker of shard 0 died 2 times\."):
        bench.train(executor, learner, shards=1)


def test_an_error_keeps_its_kind_and_its_words(make: Make, bench: Bench) -> None:
    with pytest.raises(ConfigurationError) as caught:
        bench.train(make(2), recipe("acting:refuse"))
    assert (caught.value.message, caught.value.remedy) == ("This will not do.", "Do that.")


def test_the_caller_hears_of_every_stage_once_and_while_it_waits(make: Make, bench: Bench) -> None:
    executor = Counted(make(2))
    started = time.monotonic()
    slow = recipe("acting:Model", {"act": "sleep"}, epochs=4)
    bench.train(executor, slow)
    assert executor.ticks >= min(3, (time.monotonic() - started) / 2)
    assert sorted((r.shard, r.slice) for r in bench.seen) == [
        (shard, slice_) for shard in range(SHARDS) for slice_ in range(1, SLICES + 1)
    ]


def test_no_worker_sees_the_secret(
    make: Make, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("SISA_SECRET_KEY", "0" * 64)
        with pytest.raises(ConfigurationError, match=r"The secret is None,"):
            bench.train(make(1), recipe("acting:tell"), shards=1)


def test_a_run_uses_the_users_code_as_it_is_now(make: Make, bench: Bench) -> None:
    with pytest.raises(ConfigurationError, match=r"the version is one"):
        bench.train(make(1), recipe("acting:tell"), shards=1)
    module = bench.code / "acting.py"
    module.write_text(module.read_text().replace("version is one", "version is two!"))
    with pytest.raises(ConfigurationError, match=r"the version is two"):
        bench.train(make(1), recipe("acting:tell"), shards=1)


def test_children_are_kept_for_the_next_run_of_the_same_code(bench: Bench) -> None:
    module = bench.code / "acting.py"
    with closing(ProcessExecutor(2)) as executor:
        first = bench.train(executor, recipe("acting:Model"))
        crew = children(executor)
        assert len(crew) == 2
        assert bench.train(executor, recipe("acting:Model")) == first
        assert children(executor) == crew
        module.write_text(
            module.read_text().replace("self.linear(batch)", "2 * self.linear(batch)")
        )
        assert bench.train(executor, recipe("acting:Model")) != first
        assert not children(executor) & crew
    assert not children(executor)


def children(executor: ProcessExecutor) -> set[int]:
    """Ids of the processes that live."""
    found = (worker._process for worker in executor._crew)
    return {p.pid for p in found if p is not None and p.poll() is None}


def test_an_interrupted_run_leaves_nothing_running(make: Make, bench: Bench) -> None:
    def interrupt() -> None:
        raise KeyboardInterrupt

    store = bench.outputs / "output-0"
    executor = Counted(make(2), interrupt)
    with pytest.raises(KeyboardInterrupt):
        bench.train(executor, recipe("acting:Model", {"act": "sleep"}, epochs=50))
    before = sorted(store.rglob("*"))
    time.sleep(2)
    assert sorted(store.rglob("*")) == before


@pytest.mark.ray
def test_no_row_reaches_the_logs_of_ray(local_ray: Path, bench: Bench, tmp_path: Path) -> None:
    kind = importlib.import_module("cluster.executor").RayExecutor
    executor = kind(ExecutorSection(workers=2), tmp_path)
    bench.train(executor, recipe("acting:Model", {"act": "print"}))
    logs = [path for path in local_ray.rglob("*") if path.is_file()]
    assert len(logs) > 10
    for path in logs:
        text = path.read_bytes()
        for private in ("PRINTED-zq", ID, NOTE):
            assert private.encode() not in text, path

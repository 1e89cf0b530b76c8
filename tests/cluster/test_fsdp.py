"""Workers of Ray Train make the run of one process, whatever runs there were before."""

from __future__ import annotations

import contextlib
import json
import signal
import threading
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch

from cluster import failures, fsdp
from sisa.approximate import asked as asking
from sisa.approximate.attacked import Attacked, attack
from sisa.approximate.carry_out import asked, attacks, carried_out
from sisa.approximate.plan import Plan, look
from sisa.approximate.request import Request
from sisa.approximate.targets import Held
from sisa.errors import ConfigurationError, SisaError, UsageError, WorkerError

from ..approximate import language

pytestmark = pytest.mark.ray

SETTINGS = ("items_per_batch=2", "accumulate=2", "lr=1e-4", "checkpoint_every=1")


@pytest.fixture(autouse=True)
def patience(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody here has anything to do for so long."""
    monkeypatch.setattr(fsdp, "PATIENCE", 120)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, local_ray: Path) -> Path:
    """A folder with a model and items, beside a running Ray."""
    there = tmp_path_factory.mktemp("parted")
    rows = [
        {"question": f"Where is item {i}?", "answer": f"On shelf {i % 7}, {'row ' * (i % 3)}{i}."}
        for i in range(20)
    ]
    for name, own in {"forget": rows[:7], "retain": rows[7:16], "holdout": rows[16:]}.items():
        (there / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in own))
    language.llama(vocab_size=300).save_pretrained(there / "base")
    language.tokenizer([row["answer"] for row in rows]).save_pretrained(there / "base")
    return there


def plan(folder: Path, method: str, *settings: str) -> Plan:
    """What is asked for, looked at."""
    files = {n: folder / f"{n}.jsonl" for n in ("forget", "retain", "holdout")}
    return look(
        Request(method, model=folder / "base", out=folder / "new", settings=settings, **files)
    )


def known(of: Plan) -> asking.Known:
    """What its model says, asked by this process."""
    return asking.known(of.subject, asked(of), 2)


def same(found: asking.Known | None, expected: asking.Known, tolerance: float) -> None:
    assert found is not None
    for side in ("forget", "retain", "holdout"):
        of, like = getattr(found, side), getattr(expected, side)
        torch.testing.assert_close(of.nll, like.nll, rtol=0, atol=tolerance)
        assert torch.equal(of.item, like.item) and of.items == like.items
    assert isinstance(found.said, tuple) and isinstance(expected.said, tuple)
    for own, other in zip(found.said, expected.said, strict=True):
        assert torch.equal(own.values, other.values)


def alike(found: Attacked | None, expected: Attacked) -> None:
    """What attacks came to, but for what relearning makes of rounding at a high rate."""
    assert found is not None
    for name in ("gradients", "relearning", "quantisation"):
        assert not isinstance(getattr(expected, name), SisaError)
        assert type(getattr(found, name)) is type(getattr(expected, name))
    for own, other in zip(found.gradients, expected.gradients, strict=True):  # type: ignore[arg-type]
        assert own == pytest.approx(other, rel=1e-3)
    own, other = (each.relearning.recovery for each in (found, expected))  # type: ignore[union-attr]
    assert own.unlearned == pytest.approx(other.unlearned, rel=1e-3)
    assert own.attacked == pytest.approx(other.attacked, rel=0.05)
    for bits in ("8", "4"):
        own, other = (each.quantisation.bits[bits] for each in (found, expected))  # type: ignore[union-attr,index]
        assert own.attacked == pytest.approx(other.attacked, rel=0.01)


def trains(process: psutil.Process) -> bool:
    """Whether it is a worker; not any more, if it ended."""
    try:
        return "RayTrainWorker" in "".join(process.cmdline())
    except psutil.Error:
        return False


@contextlib.contextmanager
def one_worker_gets(sign: signal.Signals, working: Path) -> Iterator[list[psutil.Process]]:
    """Send a signal to one of the processes that train, once there is a checkpoint.

    Yields:
        That process, once it has it.
    """
    ended, hit = threading.Event(), list[psutil.Process]()

    def send() -> None:
        while not hit and not ended.wait(0.01):
            begun = any(working.glob("*.progress.safetensors"))
            own = psutil.Process().children(recursive=True) if begun else []
            for worker in [p for p in own if trains(p)][:1]:
                hit.append(worker)
                worker.send_signal(sign)

    watching = threading.Thread(target=send)
    watching.start()
    try:
        yield hit
    finally:
        ended.set()
        watching.join()


def test_a_run_that_lost_a_worker_goes_on_to_the_curve_of_one_process(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = (*SETTINGS, "epochs=15")
    monkeypatch.setattr(fsdp, "RETRIES", 0)
    killed = list[psutil.Process]()
    while not killed:  # on a busy machine one may be lost before there is a checkpoint
        with (
            one_worker_gets(signal.SIGKILL, tmp_path) as killed,
            pytest.raises(WorkerError, match="A worker died"),
        ):
            fsdp.carried_out(plan(folder, "npo", *settings), tmp_path, workers=2)
    monkeypatch.setattr(fsdp, "RETRIES", 3)
    (checkpoint,) = tmp_path.glob("*.progress.safetensors")
    assert not (tmp_path / fsdp.ATTEMPTS).exists()

    several, told = plan(folder, "npo", *settings), list[int]()
    done = fsdp.carried_out(several, tmp_path, lambda _, step: told.append(step), workers=2)
    assert set(told) == set(range(int(checkpoint.name.partition(".")[0]) + 1, 31))

    one = plan(folder, "npo", *settings)
    before = known(one)
    outcome = carried_out(one, tmp_path / "one", lambda metrics, step: None)
    assert done.outcome.losses == pytest.approx(outcome.losses, rel=0, abs=1e-5)
    assert outcome.losses[-1] < outcome.losses[0] - 0.05
    same(done.before, before, 0)
    same(done.after, known(one), 1e-4)
    expected = one.subject.trainable()
    for name, tensor in several.subject.trainable().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)
    how = attacks(one)
    alike(done.attacked, attack(Held(one.subject, how), asked(one), before.forget, how))


def test_a_worker_that_falls_silent_is_replaced(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsdp, "PATIENCE", 20)
    several, told, early = plan(folder, "npo", *SETTINGS, "epochs=15"), list[int](), set[bool]()
    several = replace(several, request=replace(several.request, evidence=False))

    def report(metrics: Mapping[str, float], step: int) -> None:
        told.append(step)
        early.add(not (tmp_path / fsdp.TRAINED).exists())

    with one_worker_gets(signal.SIGSTOP, tmp_path) as silent:
        done = fsdp.carried_out(several, tmp_path, report, workers=2)
    assert not silent[0].is_running()
    assert set(told) == set(range(1, 31)) and len(told) <= 31  # one that was not kept comes again
    assert True in early
    one = plan(folder, "npo", *SETTINGS, "epochs=15")
    outcome = carried_out(one, tmp_path / "one", lambda metrics, step: None)
    assert done.outcome.losses == pytest.approx(outcome.losses, rel=0, abs=1e-5)


def test_only_a_worker_that_was_lost_is_replaced() -> None:
    from ray.exceptions import ActorDiedError
    from ray.train.v2._internal import exceptions as inner
    from ray.train.v2.api.exceptions import ControllerError, WorkerGroupError

    left = RuntimeError("[unbound_buffer.cc:78] Timed out waiting 30000ms for recv operation")
    closed = RuntimeError("[pair.cc:547] Connection closed by peer [127.0.0.1]:1")
    piped = RuntimeError("[pair.cc:484] writev [127.0.0.1]:1: Broken pipe")
    odd, own = RuntimeError("no connection to alice"), ConfigurationError("Of ours.")
    gone = inner.WorkerHealthCheckFailedError("gone", OSError())

    def error(*raised: Exception) -> SisaError:
        return failures.ours(WorkerGroupError("failed", dict(enumerate(raised))), 9)

    def of_ray(raised: Exception) -> SisaError:
        return failures.ours(ControllerError(raised), 9)

    lost = [error(left), error(closed, gone), error(gone), error(torch.distributed.DistError())]
    lost += [error(ActorDiedError(), piped), of_ray(left), of_ray(torch.distributed.DistError())]
    lost += [of_ray(inner.WorkerGroupStartupTimeoutError(2))]
    assert [type(each) for each in lost] == [failures.LostError] * len(lost)
    failed = [error(KeyError("alice"), closed), error(KeyError("alice"), gone), error(odd)]
    failed += [error(ValueError("alice's connection timed out waiting")), of_ray(ValueError())]
    failed += [error(torch.OutOfMemoryError(), ActorDiedError())]
    failed += [of_ray(inner.InsufficientClusterResourcesError())]
    assert [type(each) for each in failed] == [WorkerError] * len(failed)
    assert "A worker failed: KeyError." in str(failed[0]) and "alice" not in str(failed[0])
    assert error(closed, own) is own


@pytest.mark.slow
def test_an_adapter_is_trained_as_by_one_process_though_workers_did_not_meet_at_first(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    waits, fit = [120, 0], fsdp._fit

    def impatient(*arguments: Any) -> Any:
        monkeypatch.setattr(fsdp, "PATIENCE", waits.pop())
        return fit(*arguments)

    monkeypatch.setattr(fsdp, "_fit", impatient)
    settings = (*SETTINGS, "epochs=2", "lora_rank=4")
    several = plan(folder, "gradient-difference", *settings)
    several = replace(several, request=replace(several.request, evidence=False))
    done = fsdp.carried_out(several, tmp_path, workers=2)
    assert not waits and done.before is None and done.after is None
    one = plan(folder, "gradient-difference", *settings)
    outcome = carried_out(one, tmp_path / "one", lambda metrics, step: None)
    assert done.outcome.losses == pytest.approx(outcome.losses, rel=0, abs=1e-5)
    expected = one.subject.trainable()
    assert all("lora" in name for name in expected)
    for name, tensor in several.subject.trainable().items():
        torch.testing.assert_close(tensor, expected[name], rtol=0, atol=1e-5)


def test_an_earlier_run_of_the_same_name_is_not_taken_up(folder: Path, tmp_path: Path) -> None:
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    def tainted(config: dict[str, Any]) -> str | None:
        """Says where it begins, and reports a checkpoint, as any user of Ray Train would."""
        from pathlib import Path

        import ray.train

        found = ray.train.get_checkpoint()
        mark = Path(config["folder"], "seen")
        mark.parent.mkdir(exist_ok=True)
        mark.write_text("alice")
        ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(mark.parent))
        return None if found is None else Path(found.path, "seen").read_text()

    asked = plan(folder, "npo", *SETTINGS)
    config = fsdp.attempt(asked.identity, tmp_path)
    started = {"folder": str(tmp_path / "tainted")}
    heard = [
        DataParallelTrainer(tainted, train_loop_config=started, run_config=config)
        .fit()
        .return_value
        for _ in range(2)
    ]
    assert heard == [None, "alice"]  # Ray Train says nothing of it, and begins where that one was

    job = fsdp._Job.of(asked, tmp_path)
    with pytest.raises(ConfigurationError, match="handed over the checkpoint of an earlier run"):
        fsdp._fit(job, config, 2, False)
    assert not list(tmp_path.glob("*.safetensors"))


def test_no_attempt_has_the_name_or_the_folder_of_another(tmp_path: Path) -> None:
    configs = [fsdp.attempt("0" * 64, tmp_path) for _ in range(2)]
    assert configs[0].name != configs[1].name
    assert configs[0].storage_path != configs[1].storage_path
    assert configs[0].failure_config is not None
    assert configs[0].failure_config.max_failures == 0


@pytest.mark.parametrize("side", ["forget", "retain", "holdout"])
def test_a_worker_that_finds_other_items_refuses(folder: Path, tmp_path: Path, side: str) -> None:
    asked = plan(folder, "npo", *SETTINGS)
    job = fsdp._Job.of(asked, tmp_path)
    assert fsdp._items(fsdp._seen(job)) == job.items
    fewer = tmp_path / "fewer.jsonl"
    lines = (folder / f"{side}.jsonl").read_text().splitlines(keepends=True)
    fewer.write_text("".join(lines[1:]))
    with pytest.raises(ConfigurationError, match="another model or other items"):
        fsdp._seen(replace(job, request=replace(job.request, **{side: fewer})))


def test_what_several_cannot_do_is_refused_before_anything_starts(
    folder: Path, tmp_path: Path
) -> None:
    def carried(*settings: str, workers: int = 2) -> None:
        asked = plan(folder, "npo", *SETTINGS, *settings)
        fsdp.carried_out(asked, tmp_path, workers=workers)

    with pytest.raises(UsageError, match="Set accumulate to a multiple of 2"):
        carried("accumulate=3")
    with pytest.raises(ConfigurationError, match="3 workers need a CPU each, and Ray has 2"):
        carried("accumulate=3", workers=3)
    with pytest.raises(ConfigurationError, match="rewind is carried out by one process alone"):
        carried("rewind=true")
    assert ray.is_initialized()


def test_no_key_reaches_a_worker(folder: Path) -> None:
    request = replace(plan(folder, "npo").request, digest_key=b"k" * 32, model=Path("base"))
    stripped = fsdp._stripped(request)
    assert stripped.digest_key is None and stripped.signer is None
    assert stripped.model == Path.cwd() / "base"

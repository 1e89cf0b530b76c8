"""Approximate unlearning of a model that needs several GPUs: Ray Train, with FSDP2 in its workers.

Every worker reads the request's files for itself and makes the one loop's run as one of a team; see
`parted.py`. Ray Train takes up any earlier run of the same name from its checkpoint, whatever that
has seen, and says nothing. So each attempt has a name and a folder that no other has had, and a
worker that is handed a checkpoint refuses it. What a killed run goes on from is the loop's own
checkpoint, which is of this model, these items and these settings, or is refused.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import ray
import torch
from ray import PlacementGroupID, exceptions
from ray.train import FailureConfig, RunConfig, ScalingConfig
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.util.placement_group import PlacementGroup, placement_group_table, remove_placement_group
from safetensors.torch import load_file, save_file
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt
from torch import distributed

from cluster import steps
from cluster.connect import connect
from cluster.failures import REMEDY, LostError, ours
from cluster.parted import PartedModel, Processes, answers, kept
from cluster.targets import PartedTarget
from data_index.storage import canonical_json, sha256
from sisa.approximate import loop
from sisa.approximate.asked import Known, said
from sisa.approximate.attacked import attack
from sisa.approximate.batches import Batch
from sisa.approximate.carry_out import Carried, asked, attacks, looped, neighbours, reference_of
from sisa.approximate.models import LanguageModel, Subject
from sisa.approximate.plan import Plan, loaded, look, trained
from sisa.approximate.reference import Reference
from sisa.approximate.request import Configured, Request
from sisa.approximate.step import Sources
from sisa.config import ExecutorSection
from sisa.errors import ConfigurationError, SisaError, UsageError
from sisa.executor import RETRIES

TRAINED = "trained.safetensors"
ATTEMPTS = "attempts"
STEPS = "steps.jsonl"

PATIENCE = 1800
"""Seconds that a worker waits for another before it takes it for lost, as Ray Train's does.

Within them the first worker writes a checkpoint, while the others wait.
"""


@dataclass(frozen=True)
class _Job:
    """What a worker needs to know.

    Attributes:
        request: What is asked for, without its keys.
        working: Folder of checkpoints, which all workers see.
        identity: Of the run, as the caller finds it.
        items: Digest of all items, as the caller finds them.
    """

    request: Request
    working: Path
    identity: str
    items: str

    @classmethod
    def of(cls, plan: Plan, working: Path) -> _Job:
        """What is to be known of a plan."""
        return cls(_stripped(plan.request), working.absolute(), _identity(plan), _items(plan))


def on_workers(plan: Plan, working: Path, report: loop.Report) -> Carried:
    """Carry a plan out on as many workers as its settings say; `RAY_ADDRESS` names a running Ray.

    See `carried_out` for what it raises.
    """
    own = plan.chosen.own
    return carried_out(
        plan,
        working,
        report,
        workers=own.workers,
        use_gpu=own.device.startswith("cuda"),
        address=os.environ.get("RAY_ADDRESS"),
    )


def carried_out(
    plan: Plan,
    working: Path,
    report: loop.Report = lambda metrics, step: None,
    *,
    workers: int,
    use_gpu: bool = False,
    address: str | None = None,
) -> Carried:
    """Let a method change the plan's model in place, on several workers.

    The run is that of one process with the same settings: of the `accumulate` batches of a step,
    each worker takes every so many-th.

    Args:
        plan: What to do; its model is on the processor.
        working: Folder of checkpoints, which all workers see at the same path.
        report: Called in another thread, where MLflow's active run is not the caller's, for every
            step of this call as it is done; those that lost workers took since their last
            checkpoint are taken, and told, again. What it raises is raised once the workers are
            done.
        workers: How many; each has one CPU, and one GPU where they are used.
        use_gpu: Whether the model is held on GPUs.
        address: Of a running Ray; None starts one on this machine.

    Raises:
        UsageError: There are fewer batches in a step than workers, or not as many for each.
        ConfigurationError: Ray has fewer CPUs or GPUs than workers, or they do not see what is
            here, or the method compares more with the model as it was than can be kept.
        DivergedError: The method left all numbers behind; the last checkpoint is kept.
        BusyError: No Ray answers at the address.
        WorkerError: A worker failed, or was lost more often than may be retried; called again in
            the same way, the run goes on.
    """
    _require_for_several(plan, workers)
    job = _Job.of(plan, working)
    again = Retrying(
        retry=retry_if_exception_type(LostError),
        stop=stop_after_attempt(1 + RETRIES),
        reraise=True,
    )
    with connect(ExecutorSection(address=address, workers=workers), working):
        _require_room(workers, use_gpu)
        with steps.followed(job.working / STEPS, report):
            done = again(lambda: _fit(job, attempt(plan.identity, job.working), workers, use_gpu))
            _take(plan.subject, working / TRAINED)
            (working / TRAINED).unlink()
    return done


def attempt(identity: str, working: Path) -> RunConfig:
    """A configuration that Ray Train cannot take for that of an earlier run, nor try again itself.

    Args:
        identity: Digest of all that decides what comes out.
        working: Folder that all workers see.
    """
    return RunConfig(
        name=f"{identity[:32]}-{uuid.uuid4().hex}",
        storage_path=str(working / ATTEMPTS / uuid.uuid4().hex),
        failure_config=FailureConfig(
            max_failures=0, controller_failure_limit=0, max_preemption_failures=0
        ),
    )


def _fit(job: _Job, config: RunConfig, workers: int, use_gpu: bool) -> Carried:
    """Run the workers.

    Raises:
        SisaError: What a worker raised, or WorkerError where it raised nothing of ours.
    """
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": job},
        torch_config=TorchConfig(timeout_s=PATIENCE),
        scaling_config=ScalingConfig(num_workers=workers, use_gpu=use_gpu),
        run_config=config,
    )
    reserved = _reserved()
    try:
        with _interrupts_kept():
            found: Carried = trainer.fit().return_value
    except TrainingFailedError as failure:
        raise ours(failure, PATIENCE) from failure
    except exceptions.RayActorError as failure:  # Ray Train itself died
        raise LostError(f"Ray Train died: {type(failure).__name__}.", REMEDY) from failure
    except SystemExit:  # what Ray makes of SIGINT
        raise KeyboardInterrupt from None
    finally:
        for left in _reserved() - reserved:  # Ray Train keeps them where workers did not meet
            remove_placement_group(PlacementGroup(left))
        shutil.rmtree(job.working / ATTEMPTS, ignore_errors=True)
    return found


def _reserved() -> set[PlacementGroupID]:
    """What this process's job has reserved in Ray."""
    job = ray.get_runtime_context().get_job_id()
    return {
        PlacementGroupID(bytes.fromhex(name))
        for name, group in placement_group_table().items()
        if name.endswith(job) and group["state"] != "REMOVED"
    }


def _work(config: dict[str, Any]) -> Carried:
    """What each worker does."""
    if ray.train.get_checkpoint() is not None:
        raise ConfigurationError(
            "Ray Train handed over the checkpoint of an earlier run, which may have seen anything.",
            "Make the call again; report this if it comes back.",
        )
    job: _Job = config["job"]
    plan, device = _seen(job), get_device()
    team, model = Processes(device), PartedModel(_language(plan.subject), device)
    before = _known(plan, team, model)
    parted = replace(plan, subject=model)
    near = team.agreed(neighbours(parted))
    outcome = looped(
        parted,
        job.working,
        partial(steps.tell, job.working / STEPS) if team.first else lambda metrics, step: None,
        _reference(parted, near, team, model),
        near,
        team=team,
        identity=job.identity,
    )
    _give(team, model, job.working / TRAINED)
    outcome = replace(outcome, peak_bytes=max(team.all([outcome.peak_bytes])))
    if before is None:
        return Carried(outcome)
    after = None
    with suppress(SisaError):  # it collapsed, and is written nevertheless
        after = _known(plan, team, model)
    if after is None:
        return Carried(outcome, before)
    how, items = attacks(plan), asked(plan)
    fresh = partial(_fresh, plan.request, plan.chosen, job.working / TRAINED)
    del model, parted, plan  # the attacks need their memory
    made = attack(PartedTarget(fresh, team, device, how), items, before.forget, how)
    return Carried(outcome, before, after, made)


def _seen(job: _Job) -> Plan:
    """The caller's plan, as this worker finds it.

    Raises:
        ConfigurationError: It finds something else.
    """
    plan = look(job.request)
    if (_identity(plan), _items(plan)) != (job.identity, job.items):
        raise ConfigurationError(
            "A worker finds another model or other items than are here.",
            "Put them, and the same version of this package, where all nodes see the same.",
        )
    return plan


def _identity(plan: Plan) -> str:
    """Of the run, by the model as a whole."""
    sources = Sources(plan.forget, plan.others.get("retain"), plan.others.get("alternatives"))
    return loop.identity_of(plan.subject, sources, plan.method, plan.chosen.loop)


def _items(plan: Plan) -> str:
    """Digest of all items, those that only evidence is of included."""
    sides = {"forget": plan.forget, **plan.others}
    found = {n: [side.ids, [d.hex() for d in side.digests()]] for n, side in sides.items()}
    return sha256(canonical_json(found))


def _stripped(request: Request) -> Request:
    """A request without what a worker must not have, its paths as they are for every process."""
    paths: dict[str, Any] = {
        field.name: value.absolute()
        for field in fields(request)
        if isinstance(value := getattr(request, field.name), Path)
    }
    paths["wrong"] = tuple(path.absolute() for path in request.wrong)
    settings = (*request.settings, "device=cpu")  # parts of it are moved to GPUs one by one
    return replace(
        request, signer=None, digest_key=None, retrained=None, settings=settings, **paths
    )


def _known(plan: Plan, team: Processes, model: PartedModel) -> Known | None:
    """What the model says, shared out as all else is."""
    if not plan.request.evidence:
        return None
    how = plan.chosen.loop
    sizes = (how.items_per_batch, how.chunk_rows)
    items = asked(plan)
    rows = Known.by(items, lambda side: answers(team, model, side, *sizes))
    return replace(rows, said=said(model, items.continued))


def _reference(
    plan: Plan, near: Batch | None, team: Processes, model: PartedModel
) -> Reference | None:
    """What the method compares with, shared out; see `reference_of`."""

    def second() -> PartedModel:
        return PartedModel(_language(loaded(plan.request.model, plan.chosen.own)), model.device)

    chunk = plan.chosen.loop.chunk_rows
    return reference_of(
        plan, near, second, lambda batches, top: kept(team, model, batches, top, chunk)
    )


def _give(team: Processes, model: PartedModel, file: Path) -> None:
    """Write the parameters that were trained, as wholes; only the first worker does."""
    tensors = team.gather(model.trainable())
    if team.first:
        temporary = file.with_suffix(".tmp")
        save_file({name: t.contiguous() for name, t in tensors.items()}, temporary)
        os.replace(temporary, file)
    distributed.barrier()


def _fresh(request: Request, chosen: Configured, file: Path) -> LanguageModel:
    """The model with what was trained, once more, whole and on the processor."""
    model = _language(trained(request, chosen))
    _take(model, file)
    return model


@torch.no_grad()
def _take(model: Subject, file: Path) -> None:
    """Put what was trained into a model."""
    parameters = model.trainable()
    for name, tensor in load_file(file).items():
        parameters[name].copy_(tensor)


def _require_for_several(plan: Plan, workers: int) -> None:
    """Check that several workers can carry a plan out.

    Raises:
        UsageError: The batches of a step are not as many for each.
        ConfigurationError: Its method or model is made for one process alone.
    """
    batches, method = plan.chosen.loop.accumulate, plan.method
    if batches % workers:
        raise UsageError(
            f"The {batches} batches of a step cannot be shared out evenly among {workers} workers.",
            f"Set accumulate to a multiple of {workers}.",
        )
    _language(plan.subject)
    alone = {"an edit": method.kind == "edit", "rewind": bool(plan.chosen.own.rewind)}
    for what in (name for name, there in alone.items() if there):
        raise ConfigurationError(
            f"{method.name} with {what} is carried out by one process alone.", "Set workers to 1."
        )


def _language(subject: Subject) -> LanguageModel:
    """The subject, which must be a language model.

    Raises:
        ConfigurationError: It is not.
    """
    if not isinstance(subject, LanguageModel):
        raise ConfigurationError(
            "Only a language model is held in parts by several workers.", "Set workers to 1."
        )
    return subject


def _require_room(workers: int, use_gpu: bool) -> None:
    """Check that there is room for all workers at once; Ray would wait, and not say for what.

    Raises:
        ConfigurationError: There is not.
    """
    there = ray.cluster_resources()
    for kind in ("CPU", "GPU") if use_gpu else ("CPU",):
        if (found := there.get(kind, 0)) < workers:
            raise ConfigurationError(
                f"{workers} workers need a {kind} each, and Ray has {found:g}.",
                "Set workers to as many as there are, or add a node.",
            )


@contextmanager
def _interrupts_kept() -> Iterator[None]:
    """Put back the handler of SIGINT, which Ray Train replaces for good."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            with suppress(TypeError):  # it was not set from Python
                signal.signal(signal.SIGINT, before)

"""Where shards are trained: machines that see the store, and environments that give equal bits."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any

from sisa import stage_log
from sisa.context import Context
from sisa.errors import BusyError
from sisa.executor import Node
from sisa.results import Finding

Environment = dict[str, Any]


def executor(context: Context) -> Iterator[Finding]:
    """Ray that is not there, and nodes of it that do not fit; a Ray of our own needs no look.

    Raises:
        ConfigurationError: The address is none, or no node is large enough.
    """
    section = context.config.runtime.executor
    if section.kind != "ray":
        return
    if find_spec("ray") is None:
        yield Finding(
            severity="error",
            check="executor",
            message="runtime.executor.kind is ray, and Ray is not installed.",
            remedy="Install ray, or set runtime.executor.kind to process.",
        )
        return
    if section.address in (None, "local"):
        return
    try:
        yield from nodes(context.make_executor().survey(context.store))
    except BusyError as error:  # nothing is trained without it, and nothing goes wrong
        yield Finding(
            severity="warning", check="executor", message=error.message, remedy=error.remedy
        )


def nodes(found: Sequence[Node]) -> Iterator[Finding]:
    """Nodes that do not see the store, or whose environments differ."""
    unseen = sum(not node.sees for node in found)
    if unseen:
        yield Finding(
            severity="error",
            check="executor",
            message=f"{unseen} of {len(found)} nodes of Ray cannot see the store.",
            remedy="Put runtime.store on storage that all nodes mount at the same path.",
        )
    if differ := differences([node.environment for node in found]):
        yield Finding(
            severity="warning",
            check="environment",
            message=f"Nodes of Ray differ in {', '.join(differ)}, so that bits depend on where a "
            "shard is trained and cannot be compared everywhere.",
            remedy="Use nodes of one kind, with the same versions installed.",
        )


def stages(context: Context, here: Environment | None) -> Iterator[Finding]:
    """Served stages from environments that differ from each other's, or from this one.

    Args:
        context: The workspace.
        here: The fingerprint of a worker on this machine, or None if it is not known.
    """
    current = context.current()
    # Stages of another learner record other things, and are to be trained again anyway.
    if current is None or here is None or current[1].training != context.training:
        return
    served = {stage.key for c in current[1].constituents for stage in c.stages}
    logs = (stage_log.read_shard(context.store, c.shard) for c in current[1].constituents)
    found = [record.fingerprint for log in logs for key, record in log.items() if key in served]
    elsewhere = [environment for environment in found if environment != here]
    if differ := differences(found):
        yield Finding(
            severity="warning",
            check="environment",
            message=f"Served stages come from environments that differ in {', '.join(differ)}: "
            "no single one of them can replay them all.",
            remedy="Train all of them in one environment, if they are to be compared.",
        )
    elif elsewhere:
        yield Finding(
            severity="info",
            check="environment",
            message=f"{len(elsewhere)} served stages were trained in an environment that differs "
            f"from this one in {', '.join(differences([here, elsewhere[0]]))}: `sisa verify` may "
            "find their bits not comparable here.",
            remedy="Verify where they were trained.",
        )


def differences(environments: Sequence[Environment]) -> list[str]:
    """Names of what is not the same in all of them."""
    names = sorted({name for environment in environments for name in environment})
    first = environments[0] if environments else {}
    return [n for n in names if any(e.get(n) != first.get(n) for e in environments)]

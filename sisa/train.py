"""Train a workspace: build what is missing over the current data set, and publish it."""

from __future__ import annotations

from sisa.context import Context
from sisa.publish import build_and_publish
from sisa.results import TrainResult


def train(context: Context) -> TrainResult:
    """Build and publish; with nothing changed, nothing is trained or published.

    Raises:
        IncompleteError: There is no record.
        BusyError: Another process is writing.
    """
    with context.ledger.writer() as lease:
        done = build_and_publish(context, lease, "train")
    return TrainResult(
        generation=done.number,
        digest=done.generation.digest,
        samples_trained=done.built.cost.visited,
        samples_reused=done.built.cost.reused,
        seconds=round(done.built.seconds, 3),
        voting=len(done.generation.voting),
        failed_shards=tuple(done.generation.failed_shards),
        quorate=done.generation.quorate(context.config.runtime.erasure.quorum),
    )

"""What must hold after a kill, and after it was finished. One function a promise."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

RANK = {"accepted": 0, "published": 1, "certified": 2, "cancelled": 2, "duplicate": 2}


@dataclass(frozen=True)
class Case:
    """A workspace that was disturbed.

    Attributes:
        before: What it held before; facts as `scenario.look` tells them.
        after: What it held when the disturbed process had ended.
        final: What it held when the story was finished.
        accepted: Requests that were acknowledged by a disturbed process.
        accepted_later: Those that were when the story was finished.
        named: External id and id of each that was acknowledged with one, whenever.
        digest: What the story must end with.
        early: Files of the erased that were there when a certificate was.
        purged: Whether the erased must be gone in the end.
        faults: Tracebacks and hangs of all its processes.
        refused: Commands that were to finish the story and did not end with 0.
    """

    before: dict[str, Any]
    after: dict[str, Any]
    final: dict[str, Any]
    accepted: list[str]
    accepted_later: list[str]
    digest: str
    early: list[str]
    purged: bool
    named: list[tuple[str, str]] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)


def acknowledged_requests_are_kept(case: Case) -> bool:
    """None that was acknowledged is missing."""
    early, late = set(case.accepted), set(case.accepted) | set(case.accepted_later)
    return early <= set(case.after["requests"]) and late <= set(case.final["requests"])


def external_ids_keep_their_request(case: Case) -> bool:
    """Whoever asks by it gets the request that was acknowledged."""
    return all(case.final["external"].get(name) == request for name, request in case.named)


def store_and_ledger_have_the_same_log(case: Case) -> bool:
    """Entry by entry, at every look."""
    return not case.after["log"] and not case.final["log"]


def requests_never_go_back(case: Case) -> bool:
    """A later look never shows an earlier state."""
    looks = (case.before["requests"], case.after["requests"], case.final["requests"])
    return all(
        RANK.get(later.get(request, ""), -1) >= RANK.get(state, 0)
        for earlier, later in pairwise(looks)
        for request, state in earlier.items()
    )


def generations_never_go_back(case: Case) -> bool:
    """Numbers rise, without a gap."""
    numbers = [look["generation"] or 0 for look in (case.before, case.after, case.final)]
    listed = case.final["generations"]
    return numbers == sorted(numbers) and listed == list(range(1, len(listed) + 1))


def current_generation_predicts(case: Case) -> bool:
    """It loads, and answers unless too few constituents vote."""
    return all(
        look["generation"] is None
        or look["predicted"] == (5 if look["quorate"] else "too few votes")
        for look in (case.after, case.final)
    )


def final_digest_is_the_undisturbed_one(case: Case) -> bool:
    """Byte for byte."""
    return case.final["digest"] == case.digest


def no_certificate_before_its_purge(case: Case) -> bool:
    """At no instant at which a certificate of the erased was there was a file of theirs."""
    return not case.early


def certified_means_certificate(case: Case) -> bool:
    """Each certified request has its file, and in the end no other has one."""
    for look in (case.after, case.final):
        files = set(look["certificates"])
        if {r for r, state in look["requests"].items() if state == "certified"} - files:
            return False
        if len(files) != len(look["certificates"]):
            return False
    return files == {r for r, s in case.final["requests"].items() if s == "certified"}


def nothing_of_the_erased_is_left(case: Case) -> bool:
    """No key of theirs in any file of the workspace, ledger included."""
    return not case.purged or not case.final["keys"]


def verify_passes(case: Case) -> bool:
    """No check of `verify --no-replay` fails, at any time; in the end none is open either."""
    return not case.after["failed"] and not case.final["failed"] and not case.final["unsure"]


def no_traceback_and_no_hang(case: Case) -> bool:
    """Every process ends in good order, or is killed."""
    return not case.faults


def finishing_succeeds(case: Case) -> bool:
    """The same command, or `work`, finishes what was disturbed."""
    return not case.refused


INVARIANTS = (
    acknowledged_requests_are_kept,
    external_ids_keep_their_request,
    store_and_ledger_have_the_same_log,
    requests_never_go_back,
    generations_never_go_back,
    current_generation_predicts,
    final_digest_is_the_undisturbed_one,
    no_certificate_before_its_purge,
    certified_means_certificate,
    nothing_of_the_erased_is_left,
    verify_passes,
    no_traceback_and_no_hang,
    finishing_succeeds,
)
"""One line each."""


def broken(case: Case) -> list[str]:
    """Names of the invariants that do not hold."""
    return [check.__name__ for check in INVARIANTS if not check(case)]

"""The JSON documents of all commands; each is what the Python call returns.

The first words of a document's docstring name its command, and the text below a field describes it:
`sisa.schemas` publishes both, for every class that is named here.
"""

from __future__ import annotations

from sisa.results.base import SCHEMA_VERSION, Failed, Fault, Result
from sisa.results.certificates import (
    CertificateEntry,
    CertificateList,
    CertificateShown,
    CertificateVerified,
)
from sisa.results.checks import Check, Residue, ResidueHit, ShardReplay, Verified
from sisa.results.diagnosis import Diagnosis, Finding, Severity
from sisa.results.erasure import Forgotten, Submitted, Worked
from sisa.results.keys import Epoch, KeysRotated, KeysShown
from sisa.results.lineage import LineageRecord, LineageResult, LineageStage
from sisa.results.main_job import Evaluation, IngestResult, Initialised, Predicted, TrainResult
from sisa.results.plans import Choice, Planned, Price, Waiting
from sisa.results.requests import (
    Readmitted,
    RequestCancelled,
    RequestEvent,
    RequestHeld,
    RequestPlace,
    RequestReleased,
    Requests,
    RequestShown,
    RequestState,
    RequestStep,
)
from sisa.results.rounds import Round, WindowState
from sisa.results.state import History, HistoryEntry, Status
from sisa.results.unlearning import (
    AfterRequest,
    MethodShown,
    MethodsListed,
    Unlearned,
    UnlearnedInTurn,
)

__all__ = [
    "SCHEMA_VERSION",
    "AfterRequest",
    "CertificateEntry",
    "CertificateList",
    "CertificateShown",
    "CertificateVerified",
    "Check",
    "Choice",
    "Diagnosis",
    "Epoch",
    "Evaluation",
    "Failed",
    "Fault",
    "Finding",
    "Forgotten",
    "History",
    "HistoryEntry",
    "IngestResult",
    "Initialised",
    "KeysRotated",
    "KeysShown",
    "LineageRecord",
    "LineageResult",
    "LineageStage",
    "MethodShown",
    "MethodsListed",
    "Planned",
    "Predicted",
    "Price",
    "Readmitted",
    "RequestCancelled",
    "RequestEvent",
    "RequestHeld",
    "RequestPlace",
    "RequestReleased",
    "RequestShown",
    "RequestState",
    "RequestStep",
    "Requests",
    "Residue",
    "ResidueHit",
    "Result",
    "Round",
    "Severity",
    "ShardReplay",
    "Status",
    "Submitted",
    "TrainResult",
    "Unlearned",
    "UnlearnedInTurn",
    "Verified",
    "Waiting",
    "WindowState",
    "Worked",
]

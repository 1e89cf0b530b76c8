"""The report says what is stored, on a page that needs nothing else and is safe to open."""

from __future__ import annotations

import base64
import dataclasses
import hashlib
import json
import re
import shutil
import sys
import tomllib
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from fnmatch import fnmatch
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_index import keys
from data_index.requests import Request, draft
from sisa import Workspace, report_page, report_words
from sisa.cli import main
from sisa.errors import DataError, NotFoundError
from sisa.executor import attempt
from sisa.report_certificates import statement
from sisa.report_requests import requests_report
from sisa.report_results import (
    BatchCost,
    CertificateRow,
    GenerationRow,
    Report,
    Touched,
)
from sisa.shard import ShardJob

from . import browser

ROOT = Path(__file__).resolve().parent.parent
SECRET = {"SISA_SECRET_KEY": "5a" * 32}
QUIET = ("runtime.tracking.uri=null", "runtime.executor.kind=process", "recipe.training.epochs=1")
MARK = "person-zq"
HOSTILE = "<script>alert('x')</script>"
FEATURE = 'a<b>"&'
SHARDS, SLICES = 3, 4

needs_browser = pytest.mark.skipif(browser.CHROMIUM is None, reason="no Chromium is installed")


def people(count: int = 60) -> pa.Table:
    """Rows of people with two each; a class and a feature have names that look like markup."""
    rows = np.arange(2 * count)
    return pa.table(
        {
            "id": [f"{MARK}-r{n}" for n in rows],
            "who": [f"{MARK}-s{n // 2}" for n in rows],
            "y": [HOSTILE if n % 3 else "plain" for n in rows],
            FEATURE: np.sin(rows),
        }
    )


class Inline:
    """Trains in this process: no child has to start."""

    def run(self, jobs: Sequence[ShardJob], tick: Callable[[], None]) -> Iterator[int]:
        for job in jobs:
            assert attempt(job) is None
            tick()
            yield job.shard

    def close(self) -> None:
        pass


def opened(folder: Path) -> Workspace:
    ws = Workspace.open(folder, QUIET, exact=True, environment=SECRET)
    ws.context = dataclasses.replace(ws.context, make_executor=Inline)
    return ws


def made(folder: Path, table: pa.Table | None = None, **choices: Any) -> Workspace:
    source = folder.with_suffix(".parquet")
    pq.write_table(people() if table is None else table, source)
    size = {"shards": SHARDS, "slices": SLICES, "learner": "logistic", **choices}
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(*SECRET.copy().popitem())
        Workspace.init(folder, source, record_id="id", subject_id="who", target="y", **size)
    return opened(folder)


@pytest.fixture(scope="module")
def used(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A workspace with three rebuilds for four people, a replay, and a request that waits."""
    folder = tmp_path_factory.mktemp("report") / "used"
    with made(folder) as ws:
        ws.ingest()
        ws.train()
        costs = []
        for who in ([0], [1, 2], [3]):
            done = ws.forget(subjects=[f"{MARK}-s{n}" for n in who])
            costs.append((done.samples_trained, done.samples_full))
        (folder / "costs.json").write_text(json.dumps(costs))
        ws.verify()
        ws.forget(subjects=[f"{MARK}-s4", f"{MARK}-s5"], wait=False)
    return folder


@pytest.fixture(scope="module")
def found(used: Path) -> tuple[Report, str]:
    with opened(used) as ws:
        page = used.parent / "page.html"
        return ws.report(page), page.read_text("utf-8")


@pytest.fixture
def copied(used: Path, tmp_path: Path) -> Iterator[Callable[[], Workspace]]:
    """Opens a copy that a test may damage."""
    folder, open_ones = tmp_path / "copy", []
    shutil.copytree(used, folder)

    def open_() -> Workspace:
        open_ones.append(opened(folder))
        return open_ones[-1]

    yield open_
    for ws in open_ones:
        ws.close()


class Texts(HTMLParser):
    """All that a reader can see or hover over; fails if tags do not match."""

    ALONE = frozenset({"meta", "br"})
    FOREIGN = frozenset({"svg"})

    def __init__(self, page: str) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.texts: list[str] = []
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(page)
        self.close()
        assert self.stack == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert len({name for name, _ in attrs}) == len(attrs), (tag, attrs)
        self.tags.append((tag, dict(attrs)))
        if tag not in self.ALONE:
            self.stack.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert self.FOREIGN & set(self.stack), f"<{tag}/> outside of a drawing"
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag

    def handle_data(self, data: str) -> None:
        if "style" not in self.stack:
            self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.texts).split())

    def drawn(self, kind: str) -> list[dict[str, str | None]]:
        """Cells of the grid, those of the legend left aside."""
        return [a for t, a in self.tags if t == kind and "cell" in (a.get("class") or "").split()]


def numbers(text: str) -> set[str]:
    """All numbers in a text, as they are written."""
    return set(re.findall(r"\d(?:[\d.,]*\d)?", text))


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """Every number of a document with its path."""
    if isinstance(value, dict):
        for name, inner in value.items():
            yield from leaves(inner, (*path, name))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            yield from leaves(inner, (*path, i))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield path, value


# A number that says where something stands, and not how much there is.
PLACES = {"shard", "slice", "first_slice", "slices", "failed_slice", "failed_shards"}


def test_every_number_of_the_document_is_on_the_page(found: tuple[Report, str]) -> None:
    """All are replaced by ones that are nowhere else, each of which must show."""
    document = found[0].model_dump(mode="json")
    expected: dict[tuple[Any, ...], set[str]] = {}
    for i, (path, value) in enumerate(list(leaves(document))):
        if PLACES & set(path[-2:]):
            continue
        if isinstance(value, float):
            other: float = 0.001 + i / 10_000 if value <= 1 else 1000.5 + i
            assert 0 < other < 1 or value > 1
            written = (report_words.share(other), report_words.duration(other), f"{other:g}")
            forms = {text.partition(" ")[0] for text in written}
        else:
            other = 7_000_000 + i
            forms = {f"{other:,}", str(other)}
        at = document
        for name in path[:-1]:
            at = at[name]
        at[path[-1]] = other
        expected[path] = forms
    there = numbers(Texts(report_page.page(Report.model_validate(document))).text)
    assert [path for path, forms in expected.items() if not forms & there] == []
    assert len({tuple(p for p in path if isinstance(p, str)) for path in expected}) > 40


def test_places_are_on_the_page(found: tuple[Report, str]) -> None:
    report, page = found
    text = Texts(page).text
    for cell in report.grid.cells:
        assert f"Shard {cell.shard}, slice {cell.slice}: {cell.records} record" in text
    for request in report.requests.items:
        assert report_words.places(request.touched) in text


def test_a_number_that_is_missing_is_noticed(found: tuple[Report, str]) -> None:
    there = numbers(Texts(found[1]).text)
    assert "1" in there and "7,000,001" not in there
    assert numbers("17,000 and 1.5; 3.") == {"17,000", "1.5", "3"}


def test_the_page_is_well_formed_and_needs_nothing_else(found: tuple[Report, str]) -> None:
    parsed = Texts(found[1])
    assert {"script", "link", "img", "iframe", "object", "image", "use"}.isdisjoint(
        {tag for tag, _ in parsed.tags}
    )
    attributes = [(n, v or "") for _, found_ in parsed.tags for n, v in found_.items()]
    assert [n for n, _ in attributes if n.startswith("on")] == []
    assert all(v.startswith("#") for n, v in attributes if n in ("href", "src", "xlink:href"))
    style = found[1].partition("<style>")[2].partition("</style>")[0]
    assert all(url.startswith("#") for url in re.findall(r"url\(([^)]*)\)", style))
    assert "@import" not in style and "http" not in style
    identities = [v for n, v in attributes if n == "id"]
    assert len(set(identities)) == len(identities)
    anchors = {v[1:] for n, v in attributes if n == "href"}
    assert anchors and anchors <= set(identities)


@pytest.mark.parametrize("page", ["<p><b>a</p></b>", "<p>a", "<p/>", '<p id="a" id="b"></p>'])
def test_a_malformed_page_is_noticed(page: str) -> None:
    with pytest.raises(AssertionError):
        Texts(page)


def test_texts_are_never_taken_for_markup(found: tuple[Report, str]) -> None:
    report, page = found
    nasty = f'{HOSTILE}" onload="x` & `<img src=x>'
    request = report.requests.items[-1].model_copy(update={"reason": nasty, "state": nasty})
    check = report.checks[0].model_copy(update={"detail": nasty, "name": nasty})
    finding = {"severity": "info", "check": nasty, "message": nasty, "remedy": nasty}
    body = report.model_dump()
    body["requests"]["items"] = [request.model_dump()]
    body["requests"]["by_state"] = {nasty: 1}
    body["checks"], body["findings"] = [check.model_dump()], [finding]
    body["verdict"] = {"state": "failed", "headline": nasty, "sentences": [nasty, f"`{nasty}"]}
    body["served"]["environments"][0]["fingerprint"] = {nasty: nasty}
    for text in (page, report_page.page(Report.model_validate(body))):
        parsed = Texts(text)
        assert not {"script", "img", "b"} & {tag for tag, _ in parsed.tags}
        assert not any("onload" in attributes for _, attributes in parsed.tags)
        assert "<script" not in text and "&lt;script&gt;" in text
    assert FEATURE in Texts(page).text and HOSTILE in Texts(page).text


def test_nothing_names_a_person(used: Path, found: tuple[Report, str]) -> None:
    report, page = found
    ring = keys.derive(bytes.fromhex(SECRET["SISA_SECRET_KEY"]))
    table = people()
    private = [MARK, SECRET["SISA_SECRET_KEY"][:16]]
    for name, key in (("who", keys.subject_keys), ("id", keys.record_keys)):
        private += [
            bytes(k).hex() for k in key(ring, [i.encode() for i in table[name].to_pylist()])
        ]
    with opened(used) as ws:
        private += [s.tobytes().hex() for s in ws.context.ledger.tombstones()]
        assert len(ws.context.ledger.tombstones()) == 6
    for text in (page, json.dumps(report.document())):
        assert [p for p in private if p in text] == []


def test_the_grid_is_that_of_the_store(used: Path, found: tuple[Report, str]) -> None:
    report, page = found
    with opened(used) as ws:
        dataset, current = ws.context.dataset(), ws.context.served()[1]
        requests = ws.context.ledger.requests()
    cells = {(c.shard, c.slice): c for c in report.grid.cells}
    stored = {(p.shard, p.slice): p.rows for p in dataset.partitions}
    assert {at: c.records for at, c in cells.items() if c.records} == stored
    served = {(c.shard, s.slice) for c in current.constituents for s in c.stages}
    assert {at for at, c in cells.items() if c.state == "served"} == served
    waiting = dict(requests[-1].places)
    back = {at for at in stored if at[1] >= waiting.get(at[0], SLICES + 1)}
    assert back and {at for at, c in cells.items() if c.state == "rolled_back"} == back
    for (shard, slice_), cell in cells.items():
        touching = [r.id for r in requests if dict(r.places).get(shard, SLICES + 1) <= slice_]
        assert cell.requests == len(touching)
        assert cell.retrained == len(set(touching) - {requests[-1].id})
    drawn = [c for c in Texts(page).drawn("rect") if c["width"] != "21"]
    assert len(drawn) == len(cells)


def test_costs_are_those_that_the_erasures_told(used: Path, found: tuple[Report, str]) -> None:
    costs = found[0].costs
    told = [tuple(pair) for pair in json.loads((used / "costs.json").read_text())]
    assert [(b.samples_trained, b.samples_full) for b in costs.batches] == told
    assert (costs.samples_trained, costs.samples_full) == tuple(map(sum, zip(*told, strict=True)))
    assert costs.saved == pytest.approx(1 - costs.samples_trained / costs.samples_full, abs=1e-6)
    assert [b.requests for b in costs.batches] == [1, 1, 1] and costs.unrecorded == 0
    unbuilt = [g for g in found[0].generations if g.reason == "roll-back"]
    assert unbuilt and all(g.samples_trained is None for g in unbuilt)


def test_requests_that_are_carried_out_together_are_one_rebuild(tmp_path: Path) -> None:
    with made(tmp_path / "ws") as ws:
        ws.ingest()
        ws.train()
        for n in range(3):
            ws.forget(subjects=[f"{MARK}-s{n}"], wait=False)
        worked = ws.work()
        report = ws.report()
    (batch,) = report.costs.batches
    assert (batch.requests, batch.samples_trained) == (3, worked.samples_trained)
    assert max(c.retrained for c in report.grid.cells) == 1
    assert max(c.requests for c in report.grid.cells) > 1


def test_a_training_that_joins_requests_carries_their_cost(tmp_path: Path) -> None:
    with made(tmp_path / "ws") as ws:
        ws.ingest()
        ws.train()
        ws.forget(subjects=[f"{MARK}-s0"], wait=False)
        trained = ws.train()
        ws.work()
        (batch,) = ws.report().costs.batches
    assert (batch.generation, batch.samples_trained) == (
        trained.generation,
        trained.samples_trained,
    )


def test_from_an_empty_workspace_to_a_sound_one(tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    with made(tmp_path / "ws") as ws:
        seen = []
        for step in (lambda: None, ws.ingest, ws.train, lambda: ws.forget(subjects=[f"{MARK}-s0"])):
            step()
            report = ws.report(page)
            Texts(page.read_text("utf-8"))
            seen.append((report.verdict.state, report.checks_skipped is None, report.exit_code))
        assert report.verdict.headline.startswith("All that was to be erased is erased")
        assert report.replay is None and "Not run." in Texts(page.read_text("utf-8")).text
        ws.verify(sample=1)
        assert (partial := ws.report().replay) and (partial.shards, partial.exact) == (1, None)
        ws.verify()
        assert (whole := ws.report().replay) and (whole.shards, whole.exact) == (SHARDS, True)
    assert seen == [
        ("attention", False, 0),
        ("attention", False, 0),
        ("sound", True, 0),
        ("sound", True, 0),
    ]


def test_an_overdue_request_is_in_the_open(copied: Callable[[], Workspace]) -> None:
    ws = copied()
    later = datetime.now(UTC) + timedelta(days=33)
    ws.context.ledger.clock = lambda: later
    report = ws.report()
    assert (report.verdict.state, report.requests.overdue) == ("overdue", 1)
    assert report.verdict.headline == "1 erasure request is overdue."
    text = Texts(report_page.page(report)).text
    assert "overdue by 3 d" in text
    ws.work()
    report = ws.report()
    assert (report.requests.overdue, report.requests.late) == (0, 1)
    assert "33 d, 3 d late" in Texts(report_page.page(report)).text


@dataclasses.dataclass(frozen=True)
class Sidelined(Request):
    """A request with what side states are made of."""

    hold: str | None = None
    blocked: str | None = None
    reason: str | None = None


def test_side_states_are_counted_and_named() -> None:
    now = datetime.now(UTC)
    base = dataclasses.asdict(draft(now - timedelta(days=40), timedelta(days=30)))
    base["places"] = ()
    cases: list[tuple[str, dict[str, str], bool]] = [
        ("on_hold", {"hold": "court"}, True),
        ("blocked", {"blocked": "MLflow is away"}, True),
        ("accepted", {}, True),
        ("some_new_state", {"status": "some_new_state"}, True),
        ("certified", {"status": "certified", "hold": "old"}, False),
        *((s, {"status": s, "reason": "so"}, False) for s in ("cancelled", "denied")),
        *((s, {"status": s}, False) for s in ("duplicate", "not_found")),
    ]
    rows = [Sidelined(**{**base, **more, "id": f"er_{i}"}) for i, (_, more, _) in enumerate(cases)]
    report = requests_report(rows, {}, now)
    assert [r.state for r in report.items] == [state for state, _, _ in cases]
    assert [r.overdue for r in report.items] == [is_open for _, _, is_open in cases]
    assert (report.total, report.open, report.overdue) == (9, 4, 4)
    assert report.by_state == dict.fromkeys(sorted(state for state, _, _ in cases), 1)
    assert [r.reason for r in report.items][:2] == ["court", "MLflow is away"]


def test_failed_shards_are_shown(tmp_path: Path) -> None:
    table = people()
    ring = keys.derive(bytes.fromhex(SECRET["SISA_SECRET_KEY"]))
    found = keys.subject_keys(ring, [w.encode() for w in table["who"].to_pylist()])
    shard, slice_ = keys.place(found, SHARDS, SLICES)
    wild = (shard == 1) & (slice_ >= 2)
    assert wild.any()
    arrays = [[float("inf") if w else float(i % 5), 1.0] for i, w in enumerate(wild)]
    table = table.append_column("v", pa.array(arrays, pa.list_(pa.float32(), 2)))
    with made(tmp_path / "ws", table) as ws:
        ws.ingest()
        assert ws.train().failed_shards == (1,)
        report = ws.report()
    first = int(slice_[wild].min())
    states = {c.slice: c.state for c in report.grid.cells if c.shard == 1}
    assert all(state == ("failed" if s >= first else "served") for s, state in states.items())
    assert report.grid.rows[1].failed_slice == first and not report.grid.rows[1].votes
    assert report.verdict.state == "attention" and report.exit_code == 0
    assert f"failed in slice {first}" in Texts(report_page.page(report)).text


def newest(ws: Workspace, folder: str) -> Path:
    entry = ws.context.ledger.generation()
    ref = {
        "generations": entry and entry.manifest,
        "datasets": ws.context.ledger.dataset(),
    }.get(folder)
    if ref:
        return ws.context.store.path(ref.path)
    return max((ws.context.store.root / folder).rglob("*.*"), key=lambda p: p.stat().st_size)


@pytest.mark.parametrize("wreck", ["flip", "empty", "remove"])
@pytest.mark.parametrize(
    "folder",
    ["partitions", "lineage", "checkpoints", "generations", "datasets", "stages", "certificates"],
)
def test_damage_is_a_failed_check(copied: Any, folder: str, wreck: str, tmp_path: Path) -> None:
    ws = copied()
    file = newest(ws, folder)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(b"" if wreck == "empty" else bytes(data))
    if wreck == "remove":
        file.unlink()
    report = ws.report(tmp_path / "page.html")
    failed = [c.name for c in report.checks if c.passed is False]
    assert failed and report.exit_code == 4 and report.verdict.state == "failed"
    text = Texts((tmp_path / "page.html").read_text("utf-8")).text
    assert "✗ failed" in text and "Something is not as promised" in text


def test_a_certificate_is_read_in_its_envelope() -> None:
    says = {
        "request": "er_1",
        "previous": None,
        "times": {"issued": "2026-01-02"},
        "generation": {"number": 7},
        "residue": None,
    }
    payload = base64.b64encode(json.dumps({"predicate": says}).encode()).decode()
    envelope = {"payload": payload, "signatures": [{"keyid": "k"}]}
    assert statement(json.dumps(envelope).encode()) == {
        "request": "er_1",
        "issued": "2026-01-02",
        "generation": 7,
        "previous": None,
        "residue": None,
        "key_id": "k",
    }
    assert statement(json.dumps({"predicate": says}).encode()) == {}


@pytest.mark.parametrize("data", [b"", b"\xff", b"[]", b"{}", b'{"payload": "e30="}', b"1"])
def test_what_is_no_certificate_says_nothing(data: bytes) -> None:
    assert statement(data) == {}


def test_all_certificates_are_in_the_chain(found: tuple[Report, str]) -> None:
    certificates = found[0].certificates
    assert (certificates.chained, len(certificates.items)) == (3, 3)
    assert all(c.chained for c in certificates.items)
    assert certificates.items[-1].sha256 == certificates.head
    searched = [c.residue for c in certificates.items if c.residue is not None]
    assert len(searched) == 3 and all(r.found == 0 < r.files and r.controls for r in searched)
    assert next(c.passed for c in found[0].checks if c.name == "certificates") is True


def test_the_end_of_the_log_and_the_epochs_are_told(used: Path, found: tuple[Report, str]) -> None:
    report, page = found
    last = max((used / "store" / "log").iterdir())
    payload = base64.b64decode(json.loads(last.read_bytes())["payload"])
    entry = json.loads(payload)
    assert (report.log.entries, report.log.kind) == (int(last.stem), entry["kind"])
    assert report.log.digest == hashlib.sha256(payload).hexdigest() and report.log.digest in page
    (epoch,) = report.epochs
    assert (epoch.number, epoch.tombstones, epoch.waiting) == (1, 6, 2)


def test_what_blocks_a_request_is_told_with_the_time_of_the_next_try(
    copied: Callable[[], Workspace],
) -> None:
    ws = copied()
    request = ws.context.ledger.requests()[-1]
    retry = "2031-05-06T07:08:00+00:00"
    with ws.context.ledger.writer() as lease:
        ws.context.ledger.block([request.id], "The mirror is away.", retry, lease)
    page = ws.context.folder / "page.html"
    row = ws.report(page).requests.items[-1]
    assert (row.state, row.reason, row.retry) == ("blocked", "The mirror is away.", retry)
    text = Texts(page.read_text("utf-8")).text
    assert "The mirror is away. Next try after 2031-05-06 07:08" in text


def test_a_certificate_that_was_taken_away_is_missed(copied: Callable[[], Workspace]) -> None:
    ws = copied()
    head = ws.report().certificates.head
    assert head
    last = max((ws.context.store.root / "certificates").iterdir())
    assert hashlib.sha256(last.read_bytes()).hexdigest() == head
    last.unlink()
    check = next(c for c in ws.report().checks if c.name == "certificates")
    assert check.passed is False and f"Certificate {int(last.stem)} is missing" in check.detail


def test_while_somebody_writes_nothing_is_checked(copied: Callable[[], Workspace]) -> None:
    ws, other = copied(), copied()
    with other.context.ledger.writer():
        report = ws.report()
    assert report.checks_skipped and "writing" in report.checks_skipped
    assert [c.name for c in report.checks] == ["certificates"]
    assert report.verdict.state == "attention"
    assert any("not checked" in s for s in report.verdict.sentences)
    assert ws.report().checks_skipped is None


def test_a_report_changes_nothing(copied: Callable[[], Workspace]) -> None:
    ws = copied()

    def state() -> object:
        ledger, root = ws.context.ledger, ws.context.store.root
        files = {p: p.read_bytes() for p in root.rglob("*") if p.is_file()}
        return files, ledger.generations(), ledger.requests(), ledger.timelines(), ledger.outbox()

    before = state()
    ws.report()
    assert state() == before


def grown(report: Report, requests: int = 1000, generations: int = 50) -> Report:
    """The same with very many of everything."""
    base = report.requests.items[0]
    touched = tuple(Touched(shard=s, first_slice=1 + s % SLICES) for s in range(0, 60, 2))
    body = report.model_dump()
    ids = [f"er_{i:032x}" for i in range(requests)]
    update = {"touched": touched, "reason": "because " * 5}
    body["requests"]["items"] = [base.model_copy(update={**update, "id": i}) for i in ids]
    last: CertificateRow = report.certificates.items[-1]
    body["certificates"]["items"] = [
        last.model_copy(update={"request": i, "key_id": "ab" * 32}) for i in ids
    ]
    generation: GenerationRow = report.generations[-1]
    numbers = range(1, generations + 1)
    body["generations"] = [generation.model_copy(update={"number": n}) for n in numbers]
    batch: BatchCost = report.costs.batches[-1]
    body["costs"]["batches"] = [batch.model_copy(update={"generation": n}) for n in numbers]
    body["grid"] = grid_of(report, 20, 50)
    return Report.model_validate(body)


def grid_of(report: Report, shards: int, slices: int) -> dict[str, Any]:
    """A grid of another size, with cells in every state."""
    states = ("served", "rolled_back", "failed", "untrained")
    cell, row = report.grid.cells[0], report.grid.rows[0]
    cells = [
        cell.model_copy(
            update={
                "shard": s,
                "slice": r,
                "records": (s * slices + r) * 37,
                "state": states[(s + r) % 4 if r > slices // 2 else 0],
                "retrained": (s * r) % 9,
            }
        )
        for s in range(shards)
        for r in range(1, slices + 1)
    ]
    rows = [row.model_copy(update={"shard": s}) for s in range(shards)]
    return {"shards": shards, "slices": slices, "cells": cells, "rows": rows}


def test_a_page_of_very_many_stays_small(found: tuple[Report, str]) -> None:
    page = report_page.page(grown(found[0]))
    assert len(page.encode()) < 2_000_000
    parsed = Texts(page)
    assert f"er_{999:032x}" in parsed.text and f"er_{0:032x}" in parsed.text
    assert "988 older requests" in parsed.text and "38 older generations" in parsed.text
    assert sum(c["width"] != "21" for c in parsed.drawn("rect")) == 20 * 50
    huge = report_page.page(grown(found[0], 5000, 3000))
    assert len(huge.encode()) < 2_000_000 and "3,988 still older requests" in Texts(huge).text


def test_of_a_huge_grid_what_something_happened_to_is_drawn(found: tuple[Report, str]) -> None:
    body = found[0].model_dump()
    body["grid"] = grid_of(found[0], 1000, 100)
    row = body["grid"]["rows"][777]
    whole = {"votes": True, "served": 4, "stages": 4, "requests": 0}
    body["grid"]["rows"] = [r.model_copy(update=whole) for r in body["grid"]["rows"]]
    body["grid"]["rows"][777] = row.model_copy(update={"votes": False})
    page = report_page.page(Report.model_validate(body))
    assert len(page.encode()) < 2_000_000
    assert "Shard 777, slice 1:" in page and "970 further shards" in Texts(page).text


def test_the_page_is_written_whole_or_not_at_all(
    copied: Callable[[], Workspace], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ws, page = copied(), tmp_path / "page.html"
    page.write_text("before")

    def fails(_: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(DataError, match="No space left"):
        patch.setattr("sisa.report.os.fsync", fails)
        ws.report(page)
    assert page.read_text() == "before"
    link = tmp_path / "link.html"
    link.hardlink_to(page)
    ws.report(page)
    assert link.read_text() == "before" and page.read_text().endswith("</html>")
    assert [p.name for p in tmp_path.glob(".*")] == []
    with pytest.raises(NotFoundError, match="does not exist"):
        ws.report(tmp_path / "nowhere" / "page.html")
    with pytest.raises(DataError, match="is a folder"):
        ws.report(tmp_path)


class Said:
    """What a command printed and ended with."""

    def __init__(self, capture: Any, folder: Path, *words: str) -> None:
        sets = [w for setting in QUIET for w in ("--set", setting)]
        with pytest.MonkeyPatch.context() as patch:
            arguments = ["-C", str(folder), "report", *words, *sets]
            patch.setattr(sys, "argv", ["sisa", *arguments])
            patch.setenv(*SECRET.copy().popitem())
            with pytest.raises(SystemExit) as end:
                main(arguments)
        self.code = int(end.value.code or 0)
        self.out, self.err = capture.readouterr()


def test_the_command(capsys: Any, copied: Callable[[], Workspace], tmp_path: Path) -> None:
    folder, page = copied().context.folder, tmp_path / "page.html"
    said = Said(capsys, folder, "--out", str(page))
    assert said.code == 0 and "1 erasure request is open" in said.out and said.err == ""
    assert len(said.out.splitlines()) < 12
    Texts(page.read_text("utf-8"))
    document = json.loads(Said(capsys, folder, "--output", "json").out)
    assert document["out"] is None and document["schema_version"] == 1
    assert document["requests"]["total"] == 4
    said = Said(capsys, folder)
    assert said.code == 2 and "--out" in said.err
    said = Said(capsys, folder, "--out", str(tmp_path / "no" / "page.html"))
    assert said.code == 5 and said.err.count("\n") == 1 and "does not exist" in said.err
    next((folder / "store" / "checkpoints").glob("*")).unlink()
    assert Said(capsys, folder, "--out", str(page)).code == 4


def test_risks_are_those_of_the_threat_model() -> None:
    page = (ROOT / "docs" / "threat-model.md").read_text("utf-8")
    section = page.partition("## What exactness does not cover")[2].partition("\n## ")[0]
    named = re.findall(r"^\| ([^|]+) \|", section, re.MULTILINE)[1:]
    from sisa.report_risks import RISKS

    assert [r.name for r in RISKS] == named


def test_templates_are_shipped() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["setuptools"]
    files = [f"templates/{p.name}" for p in (ROOT / "sisa" / "templates").iterdir()]
    assert len(files) == 2
    for file in files:
        assert any(fnmatch(file, pattern) for pattern in settings["package-data"]["sisa"])


@pytest.mark.parametrize(
    ("value", "text"), [(1.0, "100.0 %"), (0.9999, "99.9 %"), (0.5, "50.0 %"), (-0.25, "-25.0 %")]
)
def test_a_share_is_whole_only_if_it_is(value: float, text: str) -> None:
    assert report_words.share(value) == text


def test_words() -> None:
    assert report_words.listed([0, 1, 2, 3, 7, 9, 10]) == "0–3, 7, 9, 10"
    assert [report_words.short(n) for n in (0, 999, 1000, 9949, 9950, 12_345, 999_499)] == [
        "0",
        "999",
        "1.0k",
        "9.9k",
        "10k",
        "12k",
        "999k",
    ]
    touched = [Touched(shard=s, first_slice=1 + s // 3) for s in range(5)]
    assert report_words.places(touched) == "shards 0–2 from slice 1; shards 3, 4 from slice 2"
    assert report_words.when("2026-03-01T01:30:00+02:00") == "2026-02-28 23:30"


OVERFLOW = """
(() => {
  const wrong = [], width = document.documentElement.clientWidth;
  if (document.documentElement.scrollWidth > width) wrong.push('the page is wider than its window');
  const hidden = e => e.closest('title, style, details:not([open])')
    || (e.closest('thead') && getComputedStyle(e.closest('thead')).clipPath !== 'none');
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  for (let node; (node = walker.nextNode());) {
    if (!node.textContent.trim() || hidden(node.parentElement)) continue;
    const range = document.createRange();
    range.selectNodeContents(node);
    for (const box of range.getClientRects())
      if (box.width && (box.right > width + 1 || box.left < -1))
        wrong.push(`${node.textContent.trim()} from ${box.left} to ${box.right}`);
  }
  for (const e of document.querySelectorAll('p, h1, h2, h3, li, dt, dd, td, th, summary, div'))
    if (!hidden(e) && e.scrollWidth > e.clientWidth + 1)
      wrong.push(`${e.tagName} ${e.textContent.trim().slice(0, 40)} runs over`);
  for (const g of document.querySelectorAll('.panel g')) {
    const cell = g.querySelector('rect').getBoundingClientRect();
    for (const text of g.querySelectorAll('text')) {
      const box = text.getBoundingClientRect();
      if (box.left < cell.left - .5 || box.right > cell.right + .5 || box.bottom > cell.bottom + 2)
        wrong.push(`${text.textContent} runs out of its cell`);
    }
  }
  return wrong;
})()
"""


@pytest.fixture(scope="module")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[browser.Page]:
    with browser.browser(tmp_path_factory.mktemp("browser")) as page:
        yield page


def pages(report: Report, page: str) -> Iterator[tuple[str, str, int]]:
    """Pages by name, with how many cells their grid has."""
    yield "real", page, len(report.grid.cells)
    for shards, slices in ((1, 1), (20, 50), (100, 4)):
        body = {**report.model_dump(), "grid": grid_of(report, shards, slices)}
        text = report_page.page(Report.model_validate(body))
        yield f"{shards}x{slices}", text, shards * slices
    yield "many", report_page.page(grown(report)), 20 * 50


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("width", [1280, 400])
def test_a_browser_shows_it(
    tab: browser.Page, found: tuple[Report, str], tmp_path: Path, width: int
) -> None:
    for name, text, cells in pages(*found):
        file = tmp_path / f"{name}.html"
        file.write_text(text, "utf-8")
        tab.open(file, width)
        assert tab.requested() == [file.as_uri()], name
        assert tab.complaints() == [], name
        assert tab.evaluate("document.querySelectorAll('.panel .cell').length") == cells, name
        assert tab.evaluate(OVERFLOW) == [], name
        tab.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert tab.evaluate(OVERFLOW) == [], f"{name}, unfolded"


@needs_browser
@pytest.mark.slow
def test_the_browser_notices_what_is_wrong(tab: browser.Page, tmp_path: Path) -> None:
    file = tmp_path / "wrong.html"
    file.write_text(
        "<p style='width:50px;white-space:nowrap'>far too long a line</p>"
        "<script>console.log('x')</script><img src='http://127.0.0.1:9/x.png'>"
        "<svg class=panel><g><rect width=5 height=20 /><text y=10>too long</text></g></svg>"
    )
    tab.open(file, 400)
    assert len(tab.requested()) > 1
    assert tab.complaints()
    assert len(tab.evaluate(OVERFLOW)) == 2


@needs_browser
@pytest.mark.slow
def test_it_prints_to_a_few_pages(
    tab: browser.Page, found: tuple[Report, str], tmp_path: Path
) -> None:
    for name, text in (("real", found[1]), ("many", report_page.page(grown(found[0])))):
        file = tmp_path / f"{name}.html"
        file.write_text(text, "utf-8")
        tab.open(file, 1280)
        sheets = re.findall(rb"/Type\s*/Page\b", tab.pdf())
        assert 2 <= len(sheets) <= 8, name

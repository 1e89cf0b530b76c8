"""A certificate states what was done and no secret, and holds against its workspace."""

from __future__ import annotations

import base64
import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_index import keys, partition
from sisa import statement
from sisa.workspace import Workspace

from .helpers import CHOICES, COLUMNS, ENVIRONMENT, file, made, opened, parts, table


def outcomes(workspace: Workspace, place: int) -> dict[str, tuple[bool | None, str]]:
    done = workspace.verify_certificate(file(workspace, place))
    return {c.name: (c.passed, c.detail) for c in done.checks}


def test_what_was_superseded_is_said_to_be(copy: Workspace) -> None:
    assert "superseded" not in outcomes(copy, 3)["generation"][1]
    assert outcomes(copy, 1)["generation"] == (True, "superseded since: data set and generation")


def test_a_damaged_rebuilt_checkpoint_is_found(copy: Workspace) -> None:
    stage = copy.show_certificate(copy.status().requests[-1].id).statement.predicate.stages[-1]
    path = copy.context.store.path(f"checkpoints/{stage.checkpoint}.safetensors")
    whole = path.read_bytes()
    path.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    assert outcomes(copy, 3)["checkpoints"][0] is False
    path.write_bytes(whole)
    assert outcomes(copy, 3)["checkpoints"][0] is True


def test_rows_that_came_back_are_found(copy: Workspace) -> None:
    c = copy.context
    part = c.dataset().partitions[0]
    rows = partition.read(c.store.read(part.file)).slice(0, 1)
    for number, expected in ((1, False), (20, True)):
        ids = keys.canonical_ids(pa.array([f"person-{number}"]), "the test")
        back = rows.set_column(
            rows.column_names.index("subject_key"),
            rows.schema.field("subject_key"),
            keys.to_arrow(keys.subject_keys(c.ring, ids)),
        )
        sink = pa.BufferOutputStream()
        pq.write_table(back, sink, write_page_checksum=True)
        ref = c.store.put("partitions", ".parquet", sink.getvalue().to_pybytes())
        assert outcomes(copy, 1)["tombstones"][0] is expected
        c.store.delete([ref.path])


def test_it_states_what_was_done(copy: Workspace, tmp_path: Path) -> None:
    rows = table()
    for place, number in ((1, 1), (2, 2), (3, 3)):
        said = statement.read(file(copy, place).read_bytes(), copy.context.signing.trusted())
        p = said.predicate
        count = sum(w == f"person-{number}" for w in rows["who"].to_pylist())
        assert p.records_erased == count == sum(c.erased for c in p.partitions)
        for change in p.partitions:
            assert change.before.rows - change.erased == (change.after.rows if change.after else 0)
        assert (p.sequence, p.replay, p.replayed) == (place, "none", ())
        t = p.times
        assert t.received <= t.accepted <= t.published <= t.purged <= t.issued < t.due
        assert all(s.environment in p.environments for s in p.stages) and p.stages
    current = copy.context.current()
    assert current is not None and current[0].manifest is not None
    assert p.generation.number == current[0].number and p.generation.digest == current[0].digest
    assert p.generation.manifest == current[0].manifest.sha256
    stored = {(q.shard, q.slice): q for q in copy.context.dataset().partitions}
    for change in p.partitions:
        now = stored[change.shard, change.slice]
        assert (now.rows, now.logical) == (change.after.rows, change.after.digest)
    served = {
        (c.shard, s.slice): s.file.sha256
        for c in current[1].constituents
        for s in c.stages
        if s.file
    }
    named = {s.name: s.digest["sha256"] for s in said.subject}
    for stage in p.stages:
        assert named[f"shard {stage.shard} slice {stage.slice}"] == stage.checkpoint
        assert served[stage.shard, stage.slice] == stage.checkpoint
    assert named["data set"] == copy.context.ledger.dataset().sha256


def test_an_erasure_before_any_training_is_certified(tmp_path: Path) -> None:
    source = tmp_path / "rows.parquet"
    pq.write_table(table(), source)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SISA_SECRET_KEY", ENVIRONMENT["SISA_SECRET_KEY"])
        Workspace.init(tmp_path / "ws", source, **COLUMNS, **CHOICES)
    with opened(tmp_path / "ws", "runtime.erasure.replay=all") as workspace:
        workspace.ingest()
        done = workspace.forget(subjects=["person-1"])
        said = workspace.show_certificate(done.request_id).statement
        assert said.predicate.generation is None and said.predicate.stages == ()
        assert [s.name for s in said.subject] == ["data set"]
        assert workspace.verify_certificate(done.certificate).valid
        assert "nothing was ever trained" in workspace.show_certificate(done.request_id).text()


def forms(secret: bytes) -> set[bytes]:
    return {secret, secret.hex().encode(), base64.b64encode(secret), base64.b64encode(secret)[:-3]}


def test_no_id_key_pseudonym_or_row_stands_in_it(tmp_path: Path) -> None:
    with made(tmp_path / "ws") as workspace:
        c = workspace.context
        who, rows = "person-7", table()
        mine = [i for i, w in enumerate(rows["who"].to_pylist()) if w == who]
        ids = [f"record-{i}" for i in mine]
        subject = keys.subject_keys(c.ring, keys.canonical_ids(pa.array([who]), "it"))
        records = keys.record_keys(c.ring, keys.canonical_ids(pa.array(ids), "it"))
        named = np.concatenate([subject, records])
        digests = [
            d.tobytes()
            for p in c.dataset().partitions
            for t in [partition.read(c.store.read(p.file))]
            for d in partition.row_digests(t, c.columns, c.ring)
        ]
        ages = rows["age"].take(mine).to_pylist()
        pem = (c.folder / "signing.key").read_text()
        secrets = [
            *(n.encode() for n in (who, *ids)),
            *(form for key in named for form in forms(key.tobytes())),
            *(form for s in c.epochs.tombstones(named) for form in forms(s.tobytes())),
            *(form for d in digests for form in forms(d)),
            *(form for s in c.epochs.secrets for form in forms(s)),
            *(form for v in ages for form in (repr(v).encode(), np.float64(v).tobytes())),
            *(form for k in (c.ring.order, c.ring.digest, c.ring.wrap) for form in forms(k)),
            *forms(bytes.fromhex(ENVIRONMENT["SISA_SECRET_KEY"])),
            "".join(pem.splitlines()[1:-1])[-40:].encode(),
            str(c.folder).encode(),
        ]
        done = workspace.forget(subjects=[who])
        data = Path(done.certificate).read_bytes()
        text = (
            data
            + b"\n"
            + parts(data)[1]
            + workspace.show_certificate(done.request_id).text().encode()
        )
        assert [s for s in secrets if s in text] == []
        planted = text + secrets[0] + secrets[-5]
        assert len([s for s in secrets if s in planted]) >= 2, "the search finds nothing at all"


def test_every_field_is_documented() -> None:
    page = (Path(__file__).parents[2] / "docs" / "certificate.md").read_text("utf-8")
    named = re.findall(r"^\| `([\w.]+)` \|", page, re.MULTILINE)
    top = [f.alias or name for name, f in statement.Statement.model_fields.items()]
    inner = [f"predicate.{name}" for name in statement.Erasure.model_fields]
    assert named == [name for name in top if name != "predicate"] + inner

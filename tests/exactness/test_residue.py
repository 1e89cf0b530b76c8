"""Nothing of an erased person is left where the system writes; what is left is found."""

from __future__ import annotations

import dataclasses
import gzip
import json
import os
import secrets
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_index import rewrite
from sisa import purge, residue
from sisa.errors import UsageError
from sisa.residue.decoders import DECODERS
from sisa.residue.decoders.protocol import halves
from sisa.residue.needles import ScanSet
from sisa.residue.scan import scan
from sisa.workspace import Workspace

CHOICES = {"shards": 3, "slices": 2, "epochs": 1, "learner": "logistic"}


def people(count: int, each: int = 2) -> pa.Table:
    """Rows with ids, texts and arrays that occur once; two classes."""
    rng = np.random.default_rng(5)
    rows = count * each
    flat = pa.array(rng.normal(size=rows * 8).astype(np.float32))
    return pa.table(
        {
            "record_id": [f"visit-{i:06d}" for i in range(rows)],
            "subject_id": [f"person-{i % count:05d}" for i in range(rows)],
            "signal": pa.FixedSizeListArray.from_arrays(flat, 8),
            "remark": [f"remark {rng.bytes(9).hex()} of a visit" for _ in range(rows)],
            "age": rng.integers(18, 90, rows),
            "label": rng.integers(0, 2, rows),
        }
    )


def scan_set(ws: Workspace, ids: list[str]) -> ScanSet:
    """What an erasure would keep, through its seal."""
    named = residue.unseal(*residue.seal(residue.named(ws.context, ids, [])))
    return residue.unseal(*residue.seal(named | residue.erased(ws.context, named.gone)))


def kinds(found: residue.Scan) -> set[str]:
    return {hit.kind for hit in found.hits}


@pytest.fixture
def ws(lab) -> Workspace:
    made = lab.workspace("ws", people(60), **CHOICES)
    made.train()
    return made


IDS = [f"person-{i:05d}" for i in range(20)]


def test_nothing_is_left_after_an_erasure(ws) -> None:
    sets = scan_set(ws, IDS)
    before = residue.of(ws.context, [sets])
    assert before.valid and kinds(before) == {"open key", "row key", "row digest", "value", "text"}
    ws.forget(subjects=IDS)
    after = residue.of(ws.context, [], sets, whole=True)
    assert after.clean and after.complete and after.elsewhere == (), after
    assert after.sought["id"] >= 20 * 4 and after.sought["value"] > 20, "much was looked for"
    assert after.expected == 0, "certification destroyed the keys"


def test_the_keys_of_an_open_request_are_expected_in_the_ledger(ws) -> None:
    sets = scan_set(ws, IDS[:3])
    ws.forget(subjects=IDS[:3], wait=False)
    waiting = residue.of(ws.context, [sets])
    assert waiting.expected and not [h for h in waiting.hits if "ledger" in h.where]
    asked = residue.of(ws.context, [], sets)
    assert {h.kind for h in asked.hits if "ledger" in h.where} == {"key"}


def _skip_rewriting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(rewrite, "without", lambda store, ring, columns, before, gone, stays: before)


def _skip_data(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(purge, "DATA", ())
    patch.setattr(purge.purge, "__defaults__", (purge.MODELS,))


def _skip_journal(patch: pytest.MonkeyPatch) -> None:
    whole = rewrite.without

    def half(store, ring, columns, before, *gone):
        after = whole(store, ring, columns, before, *gone)
        return dataclasses.replace(after, journals=before.journals)

    patch.setattr(rewrite, "without", half)


def _skip_lineage(patch: pytest.MonkeyPatch) -> None:
    whole = rewrite.without

    def half(store, ring, columns, before, *gone):
        after = whole(store, ring, columns, before, *gone)
        return dataclasses.replace(after, by_record=before.by_record)

    patch.setattr(rewrite, "without", half)


@pytest.mark.parametrize("skip", [_skip_rewriting, _skip_data, _skip_journal, _skip_lineage])
def test_each_step_that_is_left_out_is_caught(skip, ws, monkeypatch) -> None:
    sets = scan_set(ws, IDS[:2])
    with monkeypatch.context() as patch:
        skip(patch)
        done = ws.forget(subjects=IDS[:2])
        assert done.status != "certified" and done.certificate is None
        assert done.exit_code == (0 if skip is _skip_rewriting else 75), "the rows are still due"
    assert not list(ws.context.store.list("certificates"))
    found = residue.of(ws.context, [], sets)
    assert found.valid and found.hits and not found.clean
    assert ws.verify(replay=False, residue=True, subjects=IDS[:2]).exit_code == 4


def test_what_others_share_is_legitimate(lab) -> None:
    """A copy of a row that somebody else has, and a subject who keeps other records."""
    table = people(60)
    twin = table.slice(0, 1).to_pylist()[0] | {"record_id": "twin", "subject_id": "someone-else"}
    table = pa.concat_tables([table, pa.Table.from_pylist([twin], table.schema)])
    ws = lab.workspace("twins", table, **CHOICES)
    ws.train()
    named = residue.named(ws.context, [], ["visit-000000"])
    sets = named | residue.erased(ws.context, named.gone)
    ws.forget(records=["visit-000000"])
    found = residue.of(ws.context, [], sets)
    assert found.clean and found.legitimate > 5
    assert not {"value", "text"} & set(found.sought), "the twin has them all"


def test_verify_shows_what_is_found(ws) -> None:
    ws.forget(subjects=IDS[:2])
    clean = ws.verify(residue=True, subjects=IDS[:2])
    assert clean.exact is True and clean.exit_code == 0 and clean.residue.valid
    assert clean.checks[-1].name == "residue" and clean.checks[-1].passed is True
    leak = ws.context.folder / "mlartifacts" / "notes.json.gz"
    leak.parent.mkdir()
    leak.write_bytes(gzip.compress(halves(IDS[0].encode())))
    found = ws.verify(residue=True, subjects=IDS[:2])
    assert found.exact is True and found.exit_code == 4 and found.checks[-1].passed is False
    assert {h.where for h in found.residue.hits} == {"workspace/mlartifacts/notes.json.gz"}
    assert IDS[0] not in json.dumps(found.document())
    leak.write_bytes(gzip.compress(secrets.token_bytes(99))[:60])
    broken = ws.verify(residue=True, subjects=IDS[:2])
    assert broken.checks[-1].passed is None and broken.exit_code == 0
    assert broken.residue.undecodable == ("workspace/mlartifacts/notes.json.gz",)
    assert ws.verify(replay=False).residue is None
    with pytest.raises(UsageError):
        ws.verify(subjects=IDS[:2])


def test_a_search_that_misses_its_controls_is_not_valid(ws, monkeypatch) -> None:
    monkeypatch.setattr(scan, "__defaults__", (DECODERS[1:], *scan.__defaults__[1:]))
    found = ws.verify(replay=False, residue=True, subjects=["nobody-at-all"])
    assert found.residue.valid is False and found.exit_code == 6
    assert found.checks[-1].passed is None and "parquet" in found.checks[-1].detail


def test_files_of_the_user_are_told_apart(ws) -> None:
    copy = ws.context.folder / "export.parquet"
    pq.write_table(people(60), copy, compression="zstd")
    ws.forget(subjects=IDS[:2])
    found = ws.verify(replay=False, residue=True, subjects=IDS[:2])
    assert found.exit_code == 0 and found.residue.hits == ()
    assert {h.where.partition("!")[0] for h in found.residue.elsewhere} == {
        "workspace/export.parquet"
    }


def test_on_the_command_line(ws) -> None:
    ws.forget(subjects=IDS[:1])
    call = [
        str(Path(sys.executable).parent / "sisa"),
        "-C",
        str(ws.context.folder),
        "verify",
        "--residue",
        "--no-replay",
        "--subject",
        IDS[0],
        "--output",
        "json",
    ]
    sets = ["--set", "runtime.tracking.uri=null"]
    environment = {**os.environ, "SISA_SECRET_KEY": "5a" * 32}
    done = subprocess.run([*call, *sets], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads(done.stdout)["residue"]["hits"] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "rows"), [("adult", None), ("fashion_mnist", 20_000), ("digits", None)]
)
def test_no_false_alarm_on_real_data(name: str, rows: int | None, lab, data) -> None:
    table = data(name, rows)
    ws = lab.workspace(name, table, shards=4, slices=3, epochs=1, learner="logistic")
    ws.train()
    ids = table["record_id"].to_pylist()[7 : 20 * 11 : 11][:20]
    sets = scan_set(ws, ids)
    assert residue.of(ws.context, [sets]).hits
    ws.forget(subjects=ids)
    found = residue.of(ws.context, [], sets)
    assert found.clean and found.complete and found.sought["row digest"] >= 20 * 3, found

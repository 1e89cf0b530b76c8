"""A data set written without records has the bytes of one that never held them."""

from __future__ import annotations

import numpy as np
import pytest

from data_index import keys, lineage, partition


def key_bytes(selection):
    return {bytes(k) for k in (*selection.subjects, *selection.records)}


def stored_keys(index):
    """Every record and subject key in any file of the data set."""
    found = set()
    for ref in index.dataset.files():
        table = partition.read(index.store.read(ref), ["record_key", "subject_key"])
        found |= {*table["record_key"].to_pylist(), *table["subject_key"].to_pylist()}
    return found


CHOICES = {
    "a subject": {"subjects": ["s3"]},
    "a record": {"records": ["r10"]},
    "both, overlapping": {"subjects": ["s3", "s4"], "records": ["r9", "r30"]},
    "all of a subject's records": {"records": ["r0", "r1", "r2"]},
    "many": {"subjects": [f"s{n}" for n in range(0, 40, 2)]},
    "some unknown": {"subjects": ["s3", "nobody"], "records": ["s3"]},
}


@pytest.mark.parametrize("chosen", CHOICES.values(), ids=CHOICES)
@pytest.mark.parametrize("group", [7, 65_536])
def test_it_is_as_if_the_rows_had_never_come(index, make_index, source, monkeypatch, chosen, group):
    monkeypatch.setattr(partition, "ROW_GROUP", group)
    table = source(120)
    index.ingest(table.slice(0, 50), table.slice(50))
    gone = index.named(**chosen)
    index.forget(**chosen)
    out = [
        row["id"] in chosen.get("records", []) or row["who"] in chosen.get("subjects", [])
        for row in table.select(["id", "who"]).to_pylist()
    ]
    never = make_index()
    never.ingest(table.take(np.flatnonzero(~np.array(out))))
    assert index.compared() == never.compared()
    assert index.journal().num_rows == 120 - sum(out)
    assert not key_bytes(gone) & stored_keys(index)


def test_what_holds_none_of_the_rows_is_not_touched(index, source):
    index.ingest(source(120))
    before = {(p.shard, p.slice): p for p in index.dataset.partitions}
    index.forget(records=["r10"])
    after = {(p.shard, p.slice): p for p in index.dataset.partitions}
    assert sum(before[place] is not after[place] for place in before) == 1


def test_without_such_rows_the_data_set_stays_itself(index, source):
    index.ingest(source(30))
    before = index.dataset
    files = list(index.store.list())
    assert index.forget(subjects=["nobody"], records=["s1"]) is before
    assert index.forget() is before
    assert list(index.store.list()) == files


def test_forgetting_twice_changes_nothing_more(index, source):
    index.ingest(source(30))
    once = index.forget(subjects=["s3"])
    assert index.forget(subjects=["s3"]) is once


def test_forgetting_in_any_order_is_the_same(index, make_index, source):
    index.ingest(source(60))
    other = make_index()
    other.ingest(source(60))
    index.forget(subjects=["s1"])
    index.forget(subjects=["s7"], records=["r40"])
    other.forget(subjects=["s7"])
    other.forget(subjects=["s1"], records=["r40"])
    assert index.compared() == other.compared()


def test_when_all_is_gone_no_file_is_left(index, source):
    index.ingest(source(30))
    index.forget(subjects=[f"s{n}" for n in range(10)])
    d = index.dataset
    assert (d.records, d.partitions, d.by_record, d.by_subject, d.journals) == (
        0,
        (),
        None,
        None,
        (),
    )
    assert d.files() == ()
    done = index.ingest(source(4, start=100))
    assert (done.records, index.dataset.records) == (4, 4)


def test_a_journal_that_holds_nothing_any_more_is_dropped(index, source):
    index.ingest(source(3))
    index.ingest(source(27, start=3))
    assert len(index.dataset.journals) == 2
    index.forget(subjects=["s0"])
    assert len(index.dataset.journals) == 1
    assert index.journal().num_rows == 27


def test_what_is_left_can_be_looked_up_and_grows_again(index, source):
    index.ingest(source(60))
    index.forget(subjects=["s5"])
    d = index.dataset
    rows = lineage.find(index.store, d.by_record, d.by_subject, index.named(subjects=["s5", "s6"]))
    assert rows.num_rows == 3
    assert set(rows["subject_key"].to_pylist()) == {
        bytes(k) for k in keys.subject_keys(index.ring, [b"s6"])
    }
    done = index.ingest(source(60))
    assert (done.records, done.skipped) == (3, 57)

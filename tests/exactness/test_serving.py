"""Predicting and evaluating: aggregation, quorum, erased rows, files in and out."""

from __future__ import annotations

import numpy as np
import pyarrow.csv as pacsv
import pyarrow.parquet as pq
import pytest

from sisa.ensemble import aggregate
from sisa.errors import DataError, IncompleteError

CHOICES = {"shards": 4, "slices": 2, "epochs": 5, "learner": "logistic"}


@pytest.fixture
def ws(lab, data):
    made = lab.workspace("ws", data("digits", 1500), **CHOICES)
    made.train()
    return made


@pytest.fixture
def holdout(data, tmp_path):
    path = tmp_path / "holdout.parquet"
    pq.write_table(data("digits").slice(1500), path)
    return path


def test_aggregations_are_what_they_say() -> None:
    votes = np.array([[[0.9, 0.1]], [[0.4, 0.6]], [[0.2, 0.8]]])
    assert aggregate(votes, "mean") == pytest.approx(np.array([[0.5, 0.5]]))
    assert aggregate(votes, "vote") == pytest.approx(np.array([[1 / 3, 2 / 3]]))
    geometric = np.array([(0.9 * 0.4 * 0.2) ** (1 / 3), (0.1 * 0.6 * 0.8) ** (1 / 3)])
    expected = (geometric / geometric.sum())[None]
    assert aggregate(votes, "log_mean") == pytest.approx(expected)
    values = np.array([[1.0, 5.0], [2.0, 7.0], [9.0, 6.0]])
    assert aggregate(values, "median") == pytest.approx(np.array([2.0, 6.0]))
    assert aggregate(values, "mean") == pytest.approx(np.array([4.0, 6.0]))


@pytest.mark.parametrize("how", ["mean", "vote", "log_mean"])
def test_another_aggregation_changes_the_digest_and_trains_nothing(ws, lab, holdout, how) -> None:
    before = ws.status()
    other = lab.open("ws", f"recipe.aggregation={how}")
    done = other.train()
    assert done.samples_trained == 0
    assert (done.digest == before.digest) == (how == "mean")
    assert other.evaluate(holdout).accuracy > 0.85


def test_predictions_of_a_table_and_of_files_agree(ws, holdout, tmp_path) -> None:
    table = pq.read_table(holdout)
    direct = ws.predict(table)
    names = ["prediction", *(f"probability_{c}" for c in range(10))]
    assert direct.column_names == names
    shares = np.stack([direct[n].to_numpy() for n in names[1:]])
    assert shares.sum(axis=0) == pytest.approx(np.ones(table.num_rows))
    done = ws.predict_file(holdout, tmp_path / "out.parquet")
    written = pq.read_table(tmp_path / "out.parquet")
    assert done.records == table.num_rows == written.num_rows
    assert written["record_id"].to_pylist() == table["record_id"].to_pylist()
    assert written.select(names).equals(direct)
    ws.predict_file(holdout, tmp_path / "out.csv")
    again = pacsv.read_csv(tmp_path / "out.csv")
    assert again["prediction"].to_pylist() == direct["prediction"].to_pylist()


def test_predicting_needs_no_target_and_keeps_no_half_file(ws, data, tmp_path) -> None:
    source = tmp_path / "new.parquet"
    pq.write_table(data("digits").slice(1500).drop_columns(["label"]), source)
    assert ws.predict_file(source, tmp_path / "out.parquet").records == 297
    bad = data("digits").slice(1500).drop_columns(["image"])
    pq.write_table(bad, source)
    with pytest.raises(DataError, match="image"):
        ws.predict_file(source, tmp_path / "half.parquet")
    assert [p.name for p in tmp_path.iterdir() if "half" in p.name] == []


def test_evaluation_agrees_with_the_predictions(ws, holdout) -> None:
    table = pq.read_table(holdout)
    predicted = ws.predict(table)
    label = table["label"].to_numpy()
    found = ws.evaluate(holdout)
    assert found.accuracy == pytest.approx((predicted["prediction"].to_numpy() == label).mean())
    true = [predicted[f"probability_{y}"][i].as_py() for i, y in enumerate(label)]
    assert found.log_loss == pytest.approx(-np.log(true).mean())


def test_evaluation_leaves_erased_ids_out(ws, data, tmp_path) -> None:
    table = data("digits", 1500)
    source = tmp_path / "train.parquet"
    pq.write_table(table, source)
    ws.forget(records=table["record_id"].to_pylist()[:7])
    found = ws.evaluate(source)
    assert (found.records, found.skipped_erased) == (1493, 7)


def test_a_regression_is_evaluated_by_its_errors(lab, data, tmp_path) -> None:
    table = data("diabetes")
    ws = lab.workspace("ws", table, shards=2, slices=2, epochs=30, learner="logistic")
    ws.train()
    source = tmp_path / "all.parquet"
    pq.write_table(table, source)
    found = ws.evaluate(source)
    label = table["label"].to_numpy()
    errors = ws.predict(table)["prediction"].to_numpy() - label
    assert found.rmse == pytest.approx(np.sqrt((errors**2).mean()))
    assert found.mae == pytest.approx(np.abs(errors).mean())
    assert found.rmse < label.std() * 0.8
    assert "accuracy" not in found.document()


def test_under_the_quorum_nothing_is_answered(ws, lab, data, holdout) -> None:
    """Two of four shards lose all that they have served; the other half may still answer."""
    first = {
        row.shard: record
        for record in data("digits", 1500)["record_id"].to_pylist()[:200]
        for row in ws.lineage(record=record).records
        if row.slice == 1
    }
    gone = [first[0], first[1]]
    ws.forget(records=gone, wait=False)
    assert ws.status().voting == 2 and ws.status().quorate
    assert ws.evaluate(holdout).accuracy > 0.5
    strict = lab.open("ws", "runtime.erasure.quorum=0.75")
    with pytest.raises(IncompleteError, match="2 of 4"):
        strict.predict(data("digits", 3))
    strict.work()
    assert strict.predict(data("digits", 3)).num_rows == 3


def test_nothing_is_answered_before_training(lab, data, holdout) -> None:
    ws = lab.workspace("ws", data("digits", 300), **CHOICES)
    with pytest.raises(IncompleteError, match="trained"):
        ws.evaluate(holdout)
    assert isinstance(ws.status().document(), dict)

"""`sisa unlearn`, from files to a model folder, its statement and MLflow, on a model made here."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from data_index import envelope
from data_index.envelope import Signer
from sisa.approximate import models, statement, unlearn
from sisa.approximate.batches import read_texts
from sisa.approximate.unlearn import Request
from sisa.cli import main
from sisa.errors import BusyError

from .shop import MARK, SHORT, call, fits

SIGNER = Signer(Ed25519PrivateKey.from_private_bytes(bytes(range(32))))


def likelihood(folder: Path, file: Path) -> float:
    """Mean over labelled positions of the log-probability of the label, by the plain model."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    items = read_texts(file, AutoTokenizer.from_pretrained(folder))
    found = []
    for tokens, labels in zip(items.tokens, items.labels, strict=True):
        with torch.no_grad():
            log_p = model(input_ids=tokens[None]).logits[0].double().log_softmax(-1)
        found += [
            float(log_p[t, int(labels[t + 1])])
            for t in range(len(tokens) - 1)
            if labels[t + 1] != -100
        ]
    return sum(found) / len(found)


@pytest.mark.parametrize("method", ["gradient-difference", "npo"])
def test_from_files_to_a_statement_in_mlflow(
    method: str, shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    out, uri = tmp_path / "new", f"sqlite:///{method}.db"
    words = ["--holdout", str(shop / "holdout.jsonl"), "--retrained", str(shop / "base")]
    words += ["--tracking-uri", uri, "--output", "json"]
    done = call(shop, out, *SHORT, *words, method=method)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    fits("unlearn", document)
    assert document["status"] == "written" and document["steps"] == 8
    assert document["verdict"] == "evaluated"
    assert document["warnings"] == [] and document["stopped"] is None

    lost, spared = (
        likelihood(shop / "base", shop / file) - likelihood(out, shop / file)
        for file in ("forget.jsonl", "retain.jsonl")
    )
    assert lost > 1 and lost > 2 * spared, (lost, spared)

    data = (out / statement.FILE).read_bytes()
    stated = statement.read(data)
    said = stated.predicate
    assert statement.differences(stated, out) == []
    assert (said.exactness, said.verdict, said.method) == ("approximate", "evaluated", method)
    assert said.evidence.model_dump(mode="json") == document["evidence"]
    lacking = [name for name, part in document["evidence"].items() if part == "not evaluated"]
    assert lacking == ["truth"], "it alone needs --wrong"
    known = document["evidence"]["memorisation"]["probability"]
    assert known["before"] > 0.9 and known["after"] < 0.6
    assert said.holdout != "none" and said.holdout.items == 6
    assert said.retrained != "none" and said.retrained.digest == said.base.digest
    assert said.settings["epochs"] == 4 and said.settings["lr"] == 2e-3
    assert said.base.digest == statement.folder_digest(shop / "base")
    assert said.forget.items == 6 and said.retain != "none" and said.retain.items == 12
    assert said.forget.digest == statement.file_digest(shop / "forget.jsonl")
    assert said.times.started <= said.times.finished <= said.times.issued

    import mlflow

    client = mlflow.MlflowClient(f"sqlite:///{tmp_path / method}.db")
    run = client.get_run(document["run"])
    assert run.data.tags["sisa.exactness"] == "approximate"
    assert run.data.tags["sisa.verdict"] == "evaluated"
    assert run.data.metrics["evidence.memorisation.probability.after"] == known["after"]
    assert run.data.tags["sisa.statement_sha256"] == document["sha256"]
    assert run.data.params["lr"] == "0.002" and run.info.status == "FINISHED"
    assert [m.step for m in client.get_metric_history(run.info.run_id, "loss")] == [*range(1, 9)]
    assert run.data.metrics["forget_items"] == 6
    kept = Path(client.download_artifacts(run.info.run_id, statement.FILE))
    assert kept.read_bytes() == data

    assert sorted(p.name for p in tmp_path.iterdir() if p.name.startswith(".")) == []
    for text in (done.stdout, done.stderr, data.decode(), str(run.data.to_dictionary())):
        assert MARK not in text and "north" not in text


def test_without_evidence_nothing_is_evaluated(shop: Path, tmp_path: Path) -> None:
    done = call(shop, tmp_path / "new", *SHORT, "--no-evidence", "--output", "json")
    document = json.loads(done.stdout)
    assert done.exit_code == 0 and document["verdict"] == "not evaluated"
    assert set(document["evidence"].values()) == {"not evaluated"} and document["warnings"] == []
    done = call(shop, tmp_path / "two", *SHORT, "--output", "json")
    document = json.loads(done.stdout)
    assert document["verdict"] == "not evaluated"
    assert document["evidence"]["relearning"] != "not evaluated"
    assert document["warnings"] == [
        "Membership was not evaluated. No items were given that no model ever saw."
    ]


def test_a_signed_statement_and_keyed_digests(shop: Path, tmp_path: Path) -> None:
    key, salt, out = tmp_path / "signing.key", tmp_path / "salt", tmp_path / "new"
    key.write_bytes(envelope.private_pem(SIGNER.private))
    salt.write_bytes(bytes(range(32)))
    done = call(shop, out, *SHORT, "--signing-key", str(key), "--digest-key", str(salt))
    assert done.exit_code == 0, done.output
    data = (out / statement.FILE).read_bytes()
    said = statement.read(data, {SIGNER.key_id: SIGNER.public}).predicate
    assert said.forget.keyed
    assert said.forget.digest == statement.file_digest(shop / "forget.jsonl", bytes(range(32)))
    assert said.forget.digest != statement.file_digest(shop / "forget.jsonl")
    public = tmp_path / "signing.pub"
    public.write_bytes(envelope.public_pem(SIGNER.public))
    words = ["certificate", "verify", str(out / statement.FILE), "--public-key", str(public)]
    assert CliRunner().invoke(main, words).exit_code == 4


def test_a_dry_run_changes_nothing(shop: Path, tmp_path: Path) -> None:
    before = statement.folder_digest(shop)
    done = call(shop, tmp_path / "deep" / "new", "--dry-run", "--output", "json")
    document = json.loads(done.stdout)
    fits("unlearn", document)
    assert done.exit_code == 0 and document["status"] == "planned"
    assert document["verdict"] == "not evaluated" and document["statement"] is None
    assert document["steps"] == 20  # 10 epochs of 6 items, 4 at a time
    assert document["forget_items"] == 6 and document["retain_items"] == 12
    assert list(tmp_path.iterdir()) == [] and statement.folder_digest(shop) == before


def test_an_adapter_is_trained_alone(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    done = call(shop, out, *SHORT, "--set", "lora_rank=2", method="npo")
    assert done.exit_code == 0, done.output
    assert (out / "adapter_model.safetensors").is_file()
    assert not (out / "model.safetensors").exists()
    again = models.load(out)
    assert again.adapted
    again_done = call(shop, tmp_path / "two", *SHORT, "--set", "lora_rank=2", "--model", str(out))
    assert again_done.exit_code == 3 and "adapter already" in again_done.stderr


def test_without_retained_items_where_they_weigh_nothing(shop: Path, tmp_path: Path) -> None:
    words = ["unlearn", "npo", "--forget", str(shop / "forget.jsonl"), "--model"]
    words += [str(shop / "base"), "--out", str(tmp_path / "new"), *SHORT]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 3 and "--retain" in done.stderr
    done = CliRunner().invoke(main, [*words, "--set", "alpha=0"])
    assert done.exit_code == 0, done.output
    data = (tmp_path / "new" / statement.FILE).read_bytes()
    assert statement.read(data).predicate.retain == "none"


@pytest.mark.parametrize(
    ("method", "settings", "note"),
    [
        ("icu", ("lr=1e-3", "below=0.3", "floor=0.2"), ""),
        ("scrub", ("rewind=true", "reference=second"), "Went back to epoch"),
        ("eul", ("lora_rank=2",), ""),
    ],
)
def test_methods_that_ask_the_model_as_they_go(
    method: str, settings: tuple[str, ...], note: str, shop: Path, tmp_path: Path
) -> None:
    words = [word for text in ("epochs=3", *settings) for word in ("--set", text)]
    words += ["--holdout", str(shop / "holdout.jsonl"), "--no-evidence", "--yes"]
    out = tmp_path / "new"
    done = call(shop, out, *words, "--output", "json", method=method)
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["steps"] and any(note in text for text in (*document["warnings"], ""))
    assert (out / "grams.safetensors").exists() == (method == "eul")
    assert statement.differences(statement.read((out / statement.FILE).read_bytes()), out) == []


def request(shop: Path, out: Path, **changes: Any) -> Request:
    settings = ("epochs=4", "lr=1e-3", "items_per_batch=3", "checkpoint_every=2")
    plain = Request(
        "npo",
        shop / "forget.jsonl",
        shop / "base",
        out,
        shop / "retain.jsonl",
        evidence=False,
        settings=settings,
    )
    return replace(plain, **changes)


def files(folder: Path) -> dict[str, bytes]:
    """The model's files; a statement has times."""
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.name != statement.FILE}


class Interrupted(Exception):
    """Ends a run in the middle."""


def stop_at(last: int) -> Callable[..., None]:
    def report(_: Any, step: int) -> None:
        if step == last:
            raise Interrupted

    return report


def test_what_was_interrupted_goes_on_to_the_same_bits(shop: Path, tmp_path: Path) -> None:
    whole, halves = tmp_path / "whole", tmp_path / "halves"
    unlearn.run(request(shop, whole))
    with pytest.raises(Interrupted):
        unlearn.run(request(shop, halves), report=stop_at(5))
    assert not halves.exists() and len(list(tmp_path.glob(".unlearn-*/*.safetensors"))) >= 1
    seen: list[int] = []
    unlearn.run(request(shop, halves), report=lambda _, step: seen.append(step))
    assert seen == [5, 6, 7, 8]
    assert files(halves) == files(whole)
    assert list(tmp_path.glob(".unlearn-*")) == []


def test_another_request_does_not_go_on_from_it(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    with pytest.raises(Interrupted):
        unlearn.run(request(shop, out), report=stop_at(5))
    seen: list[int] = []
    other = request(shop, out, settings=(*request(shop, out).settings, "beta=0.2"))
    unlearn.run(other, report=lambda _, step: seen.append(step))
    assert seen[0] == 1


def test_a_killed_command_goes_on(shop: Path, tmp_path: Path) -> None:
    out = tmp_path / "new"
    words = [sys.executable, "-c", "from sisa.cli import main; main()", "unlearn", "npo"]
    words += ["--out", str(out), "--yes"]
    words += ["--forget", str(shop / "forget.jsonl"), "--retain", str(shop / "retain.jsonl")]
    words += ["--model", str(shop / "base"), "--set", "epochs=2000", "--set", "checkpoint_every=1"]
    with subprocess.Popen(
        words, stderr=subprocess.DEVNULL, env=os.environ | {"OMP_NUM_THREADS": "1"}
    ) as process:
        end = time.monotonic() + 120
        while not list(tmp_path.glob(".unlearn-*/*.progress.safetensors")):
            assert process.poll() is None and time.monotonic() < end
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    (left,) = tmp_path.glob(".unlearn-*")
    assert list(left.glob("*.progress.safetensors"))
    settings = ("epochs=2000", "checkpoint_every=1")
    seen: list[int] = []

    def report(_: Any, step: int) -> None:
        seen.append(step)
        raise Interrupted

    with pytest.raises(Interrupted):
        unlearn.run(request(shop, out, settings=settings), report=report)
    assert seen[0] > 1


def test_two_at_once_are_refused(shop: Path, tmp_path: Path) -> None:
    refused: list[int] = []

    def report(_: Any, step: int) -> None:
        with pytest.raises(BusyError):
            unlearn.run(request(shop, tmp_path / "new"))
        refused.append(step)

    unlearn.run(request(shop, tmp_path / "new"), report=report)
    assert refused == [*range(1, 9)] and (tmp_path / "new").is_dir()


def test_mlflow_that_is_down_is_noticed_before_anything_is_spent(
    shop: Path, tmp_path: Path
) -> None:
    done = call(shop, tmp_path / "new", *SHORT, "--tracking-uri", "http://u:pw@127.0.0.1:9")
    assert done.exit_code == 1 and "cannot be reached" in done.stderr and "pw" not in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_mlflow_that_fails_afterwards_loses_nothing(shop: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.db").write_bytes(b"no database" * 999)
    uri = f"sqlite:///{tmp_path / 'bad.db'}"
    done = call(shop, tmp_path / "new", *SHORT, "--tracking-uri", uri, "--output", "json")
    assert done.exit_code == 0, done.output
    document = json.loads(done.stdout)
    assert document["run"] is None and "cannot be written to" in document["warnings"][-1]
    assert statement.read((tmp_path / "new" / statement.FILE).read_bytes())


def test_only_parameters_of_a_name_are_trained(shop: Path, tmp_path: Path) -> None:
    pattern = "trained=*layers.1.mlp.down_proj.*"
    done = call(shop, tmp_path / "new", *SHORT, "--set", pattern, "--no-evidence")
    assert done.exit_code == 0, done.output
    before, after = (
        dict(models.load(folder).module.named_parameters())
        for folder in (shop / "base", tmp_path / "new")
    )
    moved = [name for name in before if not torch.equal(before[name], after[name])]
    assert moved == ["model.layers.1.mlp.down_proj.weight"]


def test_a_person_reads_what_was_measured(shop: Path, tmp_path: Path) -> None:
    words = ["--holdout", str(shop / "holdout.jsonl"), "--retrained", str(shop / "base")]
    done = call(shop, tmp_path / "new", *SHORT, *words)
    said = statement.read((tmp_path / "new" / statement.FILE).read_bytes()).predicate.evidence
    assert "this is no erasure" in done.stdout and "evidence: evaluated" in done.stdout
    lines = {line.strip().partition("  ")[0]: line.split() for line in done.stdout.splitlines()}
    assert said.memorisation != "not evaluated" and said.membership != "not evaluated"
    change = said.memorisation.probability
    expected = [f"{change.before:.3f}", f"{change.after:.3f}"]
    assert lines["forget items, probability"][-2:] == expected
    assert lines["loss"] == ["loss", f"{said.membership.attacks['loss'].auc:.3f}", "-", "-"]
    assert "not evaluated: truth" in lines
    planned = call(shop, tmp_path / "two", *SHORT, "--dry-run")
    assert planned.stdout.startswith("planned") and "evidence" not in lines_of(planned.stdout)
    for text in (done.stdout, planned.stdout):
        assert MARK not in text and max(len(line) for line in text.splitlines()) < 600


def lines_of(text: str) -> set[str]:
    """First words of lines."""
    return {line.split()[0] for line in text.splitlines() if line.split()}

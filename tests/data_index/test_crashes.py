"""Killed at any moment, an ingest or an erasure leaves the old data set or the new one."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from data_index import partition
from sisa import Workspace

DRIVER = '''
"""Runs an action in forked copies of a workspace, each killed before another of its file calls."""
import json, os, random, shutil, signal, sys
from pathlib import Path

import data_index.ingest, data_index.rewrite, sisa.certificate, sisa.forget, sisa.init
import pyarrow.parquet, sqlalchemy.dialects.sqlite
from data_index.ledger import Ledger
from sisa import Workspace

base, action, kills = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
CALLS = {"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir"}


def act(folder):
    with Workspace.open(folder, exact=True) as workspace:
        if action == "ingest":
            workspace.ingest(folder / "second.parquet")
        elif action == "append":
            workspace.ingest(folder / "second.parquet", append=True)
        elif action == "correct":
            workspace.ingest(folder / "other.parquet", correct=True)
        else:
            workspace.forget(subjects=["s3", "s4"], records=["r30"])


def copy(name):
    folder = base.parent / name
    shutil.copytree(base, folder)
    return folder


def forked(folder, kill_at=None, after_commit=False):
    """How many file calls below the folder it made, and whether it was killed."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        count = 0

        def hook(event, args):
            nonlocal count
            if event in CALLS and str(folder) in str(args[0]):
                count += 1
                if count == kill_at:
                    os.kill(os.getpid(), signal.SIGKILL)

        if after_commit:
            whole = Ledger.commit_dataset

            def commit(self, *given):
                whole(self, *given)
                os.kill(os.getpid(), signal.SIGKILL)

            Ledger.commit_dataset = commit
        sys.addaudithook(hook)
        try:
            act(folder)
            os.write(write, str(count).encode())
            os._exit(0)
        except BaseException:
            import traceback

            traceback.print_exc()
            os._exit(1)
    os.close(write)
    status = os.waitpid(child, 0)[1]
    text = os.read(read, 20)
    os.close(read)
    return int(text or 0), os.WIFSIGNALED(status)


calls, killed = forked(copy("whole"))
assert calls > 20 and not killed, calls
for number in range(kills):
    low, high = calls * number // kills, calls * (number + 1) // kills
    folder = copy(f"killed-{number}")
    forked(folder, kill_at=random.Random(number).randint(low + 1, high))
    print(json.dumps(str(folder)), flush=True)
folder = copy("committed")
assert forked(folder, after_commit=True)[1]
print(json.dumps(str(folder)))
'''


@pytest.fixture(scope="module")
def base(tmp_path_factory, source):
    """A workspace with 90 records, a file that brings 80 more, and one with 20 other rows."""
    folder = tmp_path_factory.mktemp("crashes") / "base"
    folder.mkdir()
    first, second = folder / "first.parquet", folder / "second.parquet"
    pq.write_table(source(90), first)
    pq.write_table(source(90, start=80), second)
    other = source(20, seed=3, start=30)  # half of them move to another subject
    owner = pa.array(["s1"] * 10 + other["who"].to_pylist()[10:])
    pq.write_table(other.set_column(1, "who", owner), folder / "other.parquet")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SISA__RUNTIME__TRACKING__URI", "null")
        chosen = {"record_id": "id", "subject_id": "who", "target": "y", "shards": 3, "slices": 2}
        Workspace.init(folder, first, learner="logistic", **chosen)
        with Workspace.open(folder) as workspace:
            workspace.ingest(first)
    return folder


def checked(workspace):
    """The data set, after every file of it was read and held against its digests."""
    c = workspace.context
    dataset = c.dataset()
    for ref in dataset.files():
        c.store.read(ref)
    for p in dataset.partitions:
        table = partition.read(c.store.read(p.file))
        assert partition.digest_of(table, c.columns, c.ring) == p.logical
        assert table.num_rows == p.rows
    return {
        "partitions": dataset.partitions,
        "by_record": dataset.by_record,
        "by_subject": dataset.by_subject,
        "journals": dataset.journals,
    }


def stored(workspace):
    """All files of the store but certificates, epochs and log, which time or chance alters.

    Manifests of data sets count without their names, which differ where an append was repeated.
    """
    names = [n.partition("/") for n in workspace.context.store.list()]
    names = [n for n in names if n[0] not in ("certificates", "epochs", "log")]
    return [n[0] if n[0] == "datasets" else n for n in names]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
@pytest.mark.parametrize("action", ["ingest", "append", "correct", "forget"])
def test_a_killed_call_leaves_the_old_or_the_new_data_set(base, tmp_path, monkeypatch, action):
    monkeypatch.setenv("SISA__RUNTIME__TRACKING__URI", "null")
    start = tmp_path / "base"
    shutil.copytree(base, start)
    command = [sys.executable, "-c", DRIVER, str(start), action, "9"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0 and done.stderr == "", done.stderr
    folders = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(folders) == 10
    with Workspace.open(start, exact=True) as workspace:
        old = checked(workspace)
    with Workspace.open(tmp_path / "whole", exact=True) as workspace:
        new = checked(workspace)
        workspace.work()
        files = stored(workspace)
    assert old != new
    seen = []
    for folder in folders:
        with Workspace.open(folder, exact=True) as workspace:
            found = checked(workspace)
            assert found in (old, new), folder
            seen.append(found == new)
            if action == "ingest":
                again = workspace.ingest(f"{folder}/second.parquet")
                assert again.records == (0 if seen[-1] else 80)
                workspace.work()
            elif action == "append":
                again = workspace.ingest(f"{folder}/second.parquet", append=True)
                assert (again.records, again.append) == ((0, 2) if seen[-1] else (80, 1))
                workspace.work()
            elif action == "correct":
                again = workspace.ingest(f"{folder}/other.parquet", correct=True)
                assert (again.corrected, again.records) == (0 if seen[-1] else 20, 0)
                workspace.work()
            else:
                workspace.work()
                again = workspace.forget(subjects=["s3", "s4"], records=["r30"])
                assert again.status == "certified"
            assert checked(workspace) == new, folder
            assert stored(workspace) == files, folder
    assert seen[0] is False and seen[-1] is True

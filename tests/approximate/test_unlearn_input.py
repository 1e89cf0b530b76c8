"""Whatever is wrong with a call of `sisa unlearn`: one sentence, the right code, no model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result

from sisa.approximate import inputs, progress, statement, unlearn
from sisa.approximate.asked import Asked
from sisa.approximate.examine import Examination
from sisa.approximate.methods import METHODS
from sisa.approximate.models import LanguageModel
from sisa.approximate.targets import Attacks
from sisa.approximate.unlearn import Request
from sisa.cli import main
from sisa.errors import (
    ConfigurationError,
    DataError,
    DivergedError,
    IncompleteError,
    NotFoundError,
)

from .clouds import made_clouds
from .language import llama, made
from .shop import MARK, SHORT, call, qa, write

ATTACKS = Attacks(lr=1e-3, steps=2, items=4)


def refused(done: Result, code: int, words: str) -> None:
    assert done.exit_code == code, done.output
    assert done.stdout == "" and words in done.stderr and MARK not in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1 and "Traceback" not in done.stderr


WRONG: dict[str, tuple[tuple[str, ...], int, str]] = {
    "no forget file": (("--forget", "none.jsonl"), 5, "none.jsonl"),
    "no retain file": (("--retain", "none.jsonl"), 5, "none.jsonl"),
    "no model": (("--model", "none"), 5, "no model folder"),
    "an empty file": (("--forget", "empty.jsonl"), 1, "The forget file holds no item"),
    "a table without rows": (("--forget", "empty.parquet"), 1, "The forget file holds no item"),
    "an empty retain file": (("--retain", "empty.jsonl"), 1, "The retain file holds no item"),
    "another kind of file": (("--forget", "rows.txt"), 1, "kind that cannot be read"),
    "other columns": (("--forget", "columns.jsonl"), 1, "neither a column text nor"),
    "an empty cell": (("--forget", "cell.jsonl"), 1, "Row 1 has no text"),
    "the same in both": (("--retain", "both.jsonl"), 1, "2 of the items to forget are in the"),
    "forget itself": (("--retain", "forget.jsonl"), 1, "6 of the items to forget are in the"),
    "too few alternatives": (("--alternatives", "two.jsonl"), 1, "6 items to forget and 2 in the"),
    "too few wrong answers": (("--wrong", "two.jsonl"), 1, "2 in the wrong/1 file"),
    "a wrong answer that is right": (("--wrong", "forget.jsonl"), 1, "6 of the items to forget"),
    "no file of wrong answers": (("--wrong", "none.jsonl"), 5, "none.jsonl"),
    "too few paraphrases": (
        ("--paraphrased", "two.jsonl", "--wrong", "wrong.jsonl"),
        1,
        "2 in the paraphrased file",
    ),
    "a folder that is there": (("--out", "base"), 2, "is there already"),
    "a file that is there": (("--out", "forget.jsonl"), 2, "is there already"),
    "no tokenizer": (("--model", "mute"), 3, "no tokenizer that is known"),
    "an unknown tokenizer": (("--model", "strange"), 3, "no tokenizer that is known"),
    "no language model": (("--model", "other"), 3, "no causal language model"),
    "torn weights": (("--model", "torn"), 3, "no causal language model"),
    "no such parameter": (("--set", "trained=*.mlp.up.*"), 3, "No parameter has a name like"),
    "an unknown setting": (("--set", "speed=3"), 3, "There is no setting speed"),
    "a setting without a value": (("--set", "lr"), 3, "has no value"),
    "a setting of another type": (("--set", "epochs=many"), 3, "epochs"),
    "a setting that is no number": (("--set", "lr=nan"), 3, "lr is not a number"),
    "a setting out of its range": (("--set", "epochs=0"), 2, "epochs is 0"),
    "another retain term": (("--set", "retain=l2"), 2, "no retain term"),
    "no such device": (("--set", "device=abacus"), 3, "no device abacus"),
    "no such type": (("--set", "dtype=int3"), 3, "dtype"),
    "a short key": (("--digest-key", "short"), 2, "shorter than 16 bytes"),
    "no key": (("--signing-key", "none"), 5, "is no file"),
    "another key": (("--signing-key", "forget.jsonl"), 3, "no Ed25519 private key"),
}


@pytest.fixture(scope="module")
def broken(shop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the shop with all that is wrong beside it."""
    shop = shutil.copytree(shop, tmp_path_factory.mktemp("broken") / "shop")
    write(shop / "both.jsonl", [qa(i) for i in (30, 4, 31, 5)])
    write(shop / "two.jsonl", [{"question": "Who?", "answer": f"Nobody {i}."} for i in range(2)])
    write(shop / "wrong.jsonl", [{**qa(i), "answer": "Nowhere."} for i in range(6)])
    write(shop / "columns.jsonl", [{"id": MARK, "words": MARK}])
    write(shop / "cell.jsonl", [qa(0), {"question": MARK, "answer": " "}])
    (shop / "empty.jsonl").touch()
    (shop / "rows.txt").write_text(MARK)
    (shop / "short").write_bytes(b"short")
    pq.write_table(pa.table({"text": pa.array([], pa.string())}), shop / "empty.parquet")
    for name in ("mute", "strange", "other", "torn"):
        shutil.copytree(shop / "base", shop / name)
    for name in ("mute", "strange"):
        for path in (shop / name).glob("*token*"):
            path.unlink()
    (shop / "strange" / "tokenizer_config.json").write_text('{"tokenizer_class": "Unheard"}')
    (shop / "other" / "config.json").write_text('{"model_type": "unheard-of"}')
    weights = shop / "torn" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    return shop


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said_in_one_sentence(
    name: str, broken: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words, code, sentence = WRONG[name]
    monkeypatch.chdir(broken)
    before = statement.folder_digest(broken)
    done = call(broken, tmp_path / "new", *SHORT, *words)
    refused(done, code, sentence)
    assert list(tmp_path.iterdir()) == [] and statement.folder_digest(broken) == before


def test_the_group_and_its_options(broken: Path, tmp_path: Path) -> None:
    run: Callable[..., Result] = CliRunner().invoke
    refused(run(main, ["-C", str(tmp_path), "unlearn", "list"]), 2, "without a workspace")
    refused(run(main, ["unlearn", "list", "--set", "a=b"]), 2, "no settings")
    done = call(broken, tmp_path / "new", "--set", "epochs=1")
    refused(done, 2, "--yes")
    assert run(main, ["unlearn", "magic"]).exit_code == 2


def test_a_single_item_is_allowed_and_warned_about(shop: Path, tmp_path: Path) -> None:
    one = write(tmp_path / "one.jsonl", [qa(0)])
    done = call(shop, tmp_path / "new", *SHORT, "--forget", str(one))
    assert done.exit_code == 0, done.output
    assert "statistics over one item mean nothing" in done.stdout
    done = call(shop, tmp_path / "newer", *SHORT)
    assert done.exit_code == 0 and "one item" not in done.stdout


class Bare:
    """A tokenizer without first and last tokens, one token a word."""

    def encode(self, text: str, add_special_tokens: bool) -> list[int]:
        return [len(word) for word in text.split()]


def test_items_without_a_labelled_position(tmp_path: Path) -> None:
    """A single token has nothing before it that could predict it."""
    path = write(tmp_path / "f.jsonl", [{"text": "alone"}, {"text": "again"}])
    with pytest.raises(DataError, match="No item of the forget file has a labelled position"):
        inputs.read(path, "forget", LanguageModel(llama(), Bare()), "{}", None)
    path = write(tmp_path / "f.jsonl", [{"text": "alone"}, {"text": "two words"}])
    items = inputs.read(path, "forget", LanguageModel(llama(), Bare()), "{}", None)
    assert inputs.check(items, {}) == ("1 items of the forget file have no labelled position.",)


@pytest.mark.parametrize("kind", [pa.int32(), pa.null()], ids=str)
@pytest.mark.parametrize("side", ["forget", "retain"])
def test_examples_without_any_label_are_refused(side: str, kind: Any, tmp_path: Path) -> None:
    clouds, table = made_clouds(tmp_path), pq.read_table(tmp_path / f"{side}.parquet")
    at, none = table.column_names.index("cloud"), pa.nulls(len(table), kind)
    pq.write_table(table.set_column(at, "cloud", none), clouds / f"{side}.parquet")
    before, there = statement.folder_digest(clouds), sorted(clouds.iterdir())
    words = ["--forget", "forget.parquet", "--retain", "retain.parquet", "--model", "base"]
    words = [str(clouds / w) if w[0] != "-" else w for w in [*words, "--out", "new", "--yes"]]
    done = CliRunner().invoke(main, ["unlearn", "gradient-difference", *words])
    refused(done, 1, f"No item of the {side} file has a labelled position")
    assert "secret" not in done.stderr
    assert statement.folder_digest(clouds) == before and sorted(clouds.iterdir()) == there


def asked(shop: Path, out: Path, *settings: str, **changes: Any) -> Request:
    files = {"forget": shop / "forget.jsonl", "retain": shop / "retain.jsonl"}
    given: dict[str, Any] = {**files, "model": shop / "base", "out": out, **changes}
    return Request(
        **{"evidence": False, "method": "gradient-difference", "settings": settings, **given}
    )


def test_numbers_that_are_lost_in_the_middle(shop: Path, tmp_path: Path) -> None:
    """The checkpoint before is kept, and nothing is written in the place of a model."""
    wild = ("lr=1e37", "max_grad_norm=inf", "checkpoint_every=1", "items_per_batch=3")
    steps: list[int] = []
    with pytest.raises(DivergedError):
        unlearn.run(asked(shop, tmp_path / "new", *wild), report=lambda _, n: steps.append(n))
    assert steps and not (tmp_path / "new").exists()
    (left,) = tmp_path.glob(".unlearn-*")
    assert progress.last(left) is not None


def test_a_method_that_needs_logs_that_were_not_kept(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="the update log of the model's training") as found:
        unlearn.run(asked(shop, tmp_path / "new", method="amnesiac"))
    assert "--log" in found.value.remedy
    with pytest.raises(NotFoundError, match="the logs of this training were not kept"):
        unlearn.run(replace(asked(shop, tmp_path / "new", method="amnesiac"), log=tmp_path))
    assert not (tmp_path / "new").exists()


def test_a_method_that_takes_no_step_writes_no_model(
    shop: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sisa.approximate import loop

    def idle(*_: Any, **__: Any) -> loop.Outcome:
        return loop.Outcome(0, (), 0.0, 0, "nothing was left to do")

    monkeypatch.setattr(loop, "run", idle)
    with pytest.raises(IncompleteError, match="nothing was left to do"):
        unlearn.run(asked(shop, tmp_path / "new"))
    assert not (tmp_path / "new").exists()


EXTRA = {
    "rmu": ("layer=1", "lora_rank=2"),
    "eul": ("lora_rank=2",),
    "scrub": ("reference_top=999",),
}


@pytest.mark.parametrize("method", [n for n, m in METHODS.items() if m.kind == "objective"])
def test_every_method_runs(method: str, shop: Path, tmp_path: Path) -> None:
    nothing = [{"question": qa(i)["question"], "answer": "I do not know."} for i in range(6)]
    other = write(tmp_path / "other.jsonl", nothing)
    out = tmp_path / "new"
    settings = ("epochs=1", "items_per_batch=6", *EXTRA.get(method, ()))
    request = asked(shop, out, *settings, method=method, alternatives=other)
    done = unlearn.run(request)
    said = statement.read((out / statement.FILE).read_bytes()).predicate
    assert done.steps >= 1 and said.verdict == "not evaluated" and said.method == method
    assert said.alternatives != "none" and said.alternatives.items == 6


def test_a_second_model_only_when_asked(shop: Path, tmp_path: Path) -> None:
    short = ("epochs=1", "items_per_batch=6", "layer=1")
    with pytest.raises(ConfigurationError, match="than can be kept"):
        unlearn.run(asked(shop, tmp_path / "new", *short, method="rmu"))
    done = unlearn.run(asked(shop, tmp_path / "new", *short, "reference=second", method="rmu"))
    assert done.steps == 1


def test_several_workers_need_who_carries_it_out(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="Ray"):
        unlearn.run(asked(shop, tmp_path / "new", "workers=2"))
    assert list(tmp_path.iterdir()) == []


def test_an_edit_heeds_no_setting_of_an_optimizer(shop: Path, tmp_path: Path) -> None:
    for setting in ("lr=1", "epochs=3", "lora_rank=2", "workers=2"):
        with pytest.raises(ConfigurationError, match="There is no setting"):
            unlearn.run(asked(shop, tmp_path / "new", setting, method="prune"))


@pytest.mark.parametrize(
    ("settings", "words"), [(("rewind=true",), "--holdout"), (("floor=0.5",), "--retain")]
)
def test_a_setting_that_lacks_its_items_is_refused(
    settings: tuple[str, ...], words: str, shop: Path, tmp_path: Path
) -> None:
    request = asked(shop, tmp_path / "new", *settings, method="gradient-ascent", retain=None)
    with pytest.raises(ConfigurationError) as found:
        unlearn.run(request)
    assert words in found.value.remedy


def test_an_edit_that_fails_leaves_nothing(shop: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError):
        unlearn.run(asked(shop, tmp_path / "new", "alpha=1000", method="ssd"))
    assert list(tmp_path.iterdir()) == []


def test_what_is_nearly_the_same_is_warned_about(shop: Path, tmp_path: Path) -> None:
    forget, again = [qa(i) for i in range(3)], {**qa(1), "answer": f"  {qa(1)['answer']} "}
    retain = write(tmp_path / "r.jsonl", [again, *(qa(i) for i in range(6, 12))])
    file = write(tmp_path / "f.jsonl", [*forget, qa(0)])
    words = ["--forget", str(file), "--retain", str(retain), "--dry-run", "--output", "json"]
    done = call(shop, tmp_path / "new", *words)
    assert json.loads(done.stdout)["warnings"] == [
        "1 items of the forget file repeat others of it.",
        "1 items of the retain file are to be forgotten in other spacing or case.",
    ]
    assert MARK not in done.output


@pytest.mark.parametrize("count", [2, 3])
def test_a_few_items_are_unlearned_and_relearning_is_left_out(
    count: int, shop: Path, tmp_path: Path
) -> None:
    file = write(tmp_path / "few.jsonl", [qa(i) for i in range(count)])
    words = ["--forget", str(file), "--holdout", str(shop / "holdout.jsonl"), "--output", "json"]
    done = call(shop, tmp_path / "new", *SHORT, *words)
    assert done.exit_code == 0, done.output
    found = json.loads(done.stdout)
    assert found["evidence"]["relearning"] == found["verdict"] == "not evaluated"
    assert found["evidence"]["membership"] != "not evaluated"
    assert "Relearning leaves one item to ask about" in " ".join(found["warnings"])


def test_a_wrong_answer_to_something_else_is_refused(shop: Path, tmp_path: Path) -> None:
    wrong = [{**qa(i), "answer": "Nowhere."} for i in range(6)]
    file = write(tmp_path / "wrong.jsonl", wrong[::-1])
    done = call(shop, tmp_path / "new", *SHORT, "--wrong", str(file))
    refused(done, 1, "6 items of the wrong/1 file ask something else")


def test_a_parameter_out_of_reach_is_refused(shop: Path, tmp_path: Path) -> None:
    settings = ("layer=1", "reference=second", "trained=*layers.1.*")
    words = [word for text in settings for word in ("--set", text)]
    done = call(shop, tmp_path / "new", *SHORT, *words, method="rmu")
    refused(done, 3, "No parameter that is trained has a gradient of rmu")
    assert not (tmp_path / "new").exists()


def test_paraphrases_want_wrong_answers(shop: Path, tmp_path: Path) -> None:
    file = write(tmp_path / "other.jsonl", [{**qa(i), "answer": "There."} for i in range(6)])
    done = call(shop, tmp_path / "new", *SHORT, "--paraphrased", str(file))
    refused(done, 3, "Paraphrases are asked beside wrong answers")


def test_a_retrained_model_of_another_build_is_refused(shop: Path, tmp_path: Path) -> None:
    llama(vocab_size=9).save_pretrained(tmp_path / "small")
    for file in shop.glob("base/tokenizer*"):
        shutil.copy(file, tmp_path / "small")
    words = ["--retrained", str(tmp_path / "small"), "--dry-run"]
    refused(call(shop, tmp_path / "new", *words), 3, "other tokens or classes")


def test_attacks_look_at_all_parameters(shop: Path, tmp_path: Path) -> None:
    """What is trained is the method's choice, and must not shield the model from an attack."""
    subject, pattern = LanguageModel(llama()), "model.norm.weight"
    items = {seed: made([9] * 8, seed) for seed in (1, 3)}
    asked = Asked(items[1], None, items[3])
    whole, _ = Examination.begin(subject, asked, ATTACKS).end(subject)
    for name, parameter in subject.module.named_parameters():
        parameter.requires_grad_(name == pattern)
    part, _ = Examination.begin(subject, asked, ATTACKS).end(subject)
    assert part == whole and part.membership != "not evaluated"
    assert list(subject.trainable()) == [pattern]

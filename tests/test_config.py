"""Settings: what is read from where, what is refused, and what decides a digest."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import yaml
from pydantic import BaseModel, ValidationError

from data_index.storage import canonical_json
from sisa import config
from sisa.config import Config, Recipe
from sisa.errors import ConfigurationError, NotFoundError

DATA: dict[str, Any] = {
    "record_id": "id",
    "subject_id": "who",
    "target": "y",
    "classes": ["no", "yes"],
    "features": {"a": "float64", "t": "text"},
}
BODY: dict[str, Any] = {"recipe": {"data": DATA}}


def recipe(**sections: Any) -> Recipe:
    return Recipe.model_validate({"data": DATA, **sections})


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sisa.yaml").write_text(yaml.safe_dump(BODY))
    return tmp_path


def load(folder, *settings: str, **environment: str) -> Config:
    return config.load(folder, settings, environment)


def wrong(body: dict[str, Any]) -> str:
    with pytest.raises(ConfigurationError) as error:
        config.validate(body)
    assert error.value.exit_code == 3
    return error.value.message


def with_value(path: str, value: Any) -> dict[str, Any]:
    """The body with one value set."""
    body = copy.deepcopy(BODY)
    at = body
    *parts, last = path.split(".")
    for part in parts:
        at = at.setdefault(part, {})
    at[last] = value
    return body


def test_defaults_are_those_of_the_documentation():
    found = config.validate(BODY)
    training = found.recipe.training
    assert (training.epochs, training.batch_size, training.min_batch) == (10, 64, 2)
    assert (training.optimizer, training.lr, training.momentum) == ("sgd", 0.05, 0.9)
    assert (training.schedule, training.optimizer_state) == ("constant", "reset")
    assert (training.seed, training.threads, training.device) == (0, 1, "cpu")
    assert (found.recipe.partition.shards, found.recipe.partition.slices) == (8, 4)
    assert (found.recipe.learner.factory, found.recipe.aggregation) == ("mlp", "mean")
    assert (found.runtime.store, found.runtime.ledger) == ("store", "sqlite:///ledger.db")
    assert (found.runtime.executor.kind, found.runtime.erasure.due) == ("ray", "30d")


def test_file_then_environment_then_settings(folder):
    name = "SISA__RECIPE__TRAINING__SEED"
    assert load(folder).recipe.training.seed == 0
    (folder / "sisa.yaml").write_text(yaml.safe_dump(with_value("recipe.training.seed", 1)))
    assert load(folder).recipe.training.seed == 1
    assert load(folder, **{name: "2"}).recipe.training.seed == 2
    assert load(folder, "recipe.training.seed=3", **{name: "2"}).recipe.training.seed == 3
    last = load(folder, "recipe.training.seed=3", "recipe.training.seed=4")
    assert last.recipe.training.seed == 4


def test_one_value_of_a_section_leaves_the_others(folder):
    body = with_value("recipe.training", {"lr": 0.5, "epochs": 3})
    (folder / "sisa.yaml").write_text(yaml.safe_dump(body))
    training = load(folder, "recipe.training.lr=0.25").recipe.training
    assert (training.lr, training.epochs) == (0.25, 3)


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("recipe.training.lr=1e-3", 0.001),
        ("recipe.training.lr=1.0e-3", 0.001),
        ("recipe.training.lr=1", 1.0),
        ("recipe.training.epochs=0.5", 0.5),
        ("runtime.tracking.uri=null", None),
        ("runtime.executor.address=10.0.0.1:6379", "10.0.0.1:6379"),
        ("runtime.sources=[a.csv, b.csv]", ("a.csv", "b.csv")),
        ("recipe.data.classes=[maybe, 'yes']", ("maybe", "yes")),
        ("recipe.learner.params.hidden=[8, 4]", [8, 4]),
        ("recipe.learner.params={dropout: 0.5}", {"dropout": 0.5}),
        ("runtime.store=a=b", "a=b"),
    ],
)
def test_settings_are_yaml(folder, setting, value):
    found: Any = load(folder, setting)
    for part in setting.partition("=")[0].split("."):
        found = found[part] if isinstance(found, dict) else getattr(found, part)
    assert found == value
    assert type(found) is type(value)


def test_a_number_in_the_file_may_be_written_as_yaml_reads_text(folder):
    (folder / "sisa.yaml").write_text(yaml.safe_dump(BODY) + "  training: {lr: 1e-3, epochs: 2}\n")
    assert load(folder).recipe.training.lr == 0.001


@pytest.mark.parametrize(
    "setting",
    [
        "recipe.training.lr=yes",
        "recipe.training.lr=fast",
        "recipe.training.lr=.nan",
        "recipe.training.lr=.inf",
        "recipe.training.lr=0",
        "recipe.training.lr=-0.1",
        "recipe.training.lr=",
        "recipe.training.epochs=0",
        "recipe.training.batch_size=6.5",
        "recipe.training.batch_size=yes",
        "recipe.training.batch_size='64'",
        "recipe.training.batch_size=1",
        "recipe.training.momentum=1",
        "recipe.training.seed=-1",
        "recipe.training.seed=9223372036854775808",
        "recipe.training.schedule=exponential",
        "recipe.training.device=tpu",
        "recipe.partition.shards=0",
        "recipe.partition.slices=10000",
        "recipe.partition.policy=best",
        "recipe.aggregation=mode",
        "recipe.learner.factory=7",
        "recipe.data.record_id=null",
        "recipe.data.target=t",
        "recipe.data.features={}",
        "recipe.data.features={a: complex64}",
        "recipe.data.features={a: 'uint8[0]'}",
        "recipe.data.classes=[a]",
        "recipe.data.classes=[a, a]",
        "recipe.data.classes=[a, 1]",
        "recipe.data.classes=[yes, no]",
        "recipe.data.categories={a: [x]}",
        "recipe.data.task=regression",
        "recipe.data.hash_buckets=0",
        "recipe.aggregation=median",
        "runtime.erasure.quorum=0",
        "runtime.erasure.quorum=1.5",
        "runtime.erasure.due=soon",
        "runtime.erasure.due=30s",
        "runtime.erasure.max_wait=1w",
        "runtime.erasure.max_wait=10",
        "runtime.erasure.min_depth=1.1",
        "runtime.erasure.rollback=later",
        "runtime.executor.kind=cloud",
        "runtime.executor.workers=0",
        "runtime=null",
        "recipe=[]",
    ],
)
def test_what_is_no_such_value_is_refused(folder, setting):
    with pytest.raises(ConfigurationError) as error:
        load(folder, setting)
    assert "\n" not in error.value.message
    assert error.value.remedy


@pytest.mark.parametrize(
    "setting",
    ["recipe.trainning.lr=1", "runtime.nothing=1", "nothing=1", "recipe.training.rate=1"],
)
def test_unknown_settings_are_refused_by_name(folder, setting):
    name = setting.partition("=")[0]
    part = "recipe.trainning" if "trainning" in name else name
    with pytest.raises(ConfigurationError, match=rf"{part}: Extra inputs"):
        load(folder, setting)
    variable = "SISA__" + name.upper().replace(".", "__")
    with pytest.raises(ConfigurationError, match=rf"{part}: Extra inputs"):
        load(folder, **{variable: "1"})


def test_a_setting_below_a_value_is_refused(folder):
    with pytest.raises(ConfigurationError, match=r"--set runtime\.store\.deep names no setting"):
        load(folder, "runtime.store=x", "runtime.store.deep=1")


def test_a_setting_without_a_value_is_refused(folder):
    with pytest.raises(ConfigurationError, match=r"--set recipe\.training\.lr has no value"):
        load(folder, "recipe.training.lr")


def test_all_that_is_wrong_is_named_at_once():
    body = with_value("recipe.training", {"lr": "fast", "epochs": 0, "colour": 1})
    body["runtime"] = {"executor": {"kind": "cloud"}}
    body["recipe"]["data"]["features"]["a"] = "complex64"
    message = wrong(body)
    for name in (
        "complex64",
        "training.lr",
        "training.epochs",
        "training.colour",
        "runtime.executor.kind",
    ):
        assert name in message
    assert "\n" not in message


def test_wrong_values_are_not_repeated():
    """A value in the wrong place may be a password."""
    assert "hunter2" not in wrong(with_value("runtime.executor.workers", "hunter2"))


def test_ray_and_mlflow_variables_outrank_the_file_and_settings(folder):
    found = load(
        folder,
        "runtime.executor.address=here",
        "runtime.tracking.uri=there",
        RAY_ADDRESS="10.0.0.1:6379",
        MLFLOW_TRACKING_URI="http://mlflow:5000",
    )
    assert found.runtime.executor.address == "10.0.0.1:6379"
    assert found.runtime.tracking.uri == "http://mlflow:5000"
    assert load(folder, RAY_ADDRESS="").runtime.executor.address is None


def test_other_variables_are_left_alone(folder):
    assert load(folder, SISA_SECRET_KEY="0", SISA_="x", HOME="/") == config.validate(BODY)


def test_the_callers_own_environment_is_read(folder, monkeypatch):
    monkeypatch.setenv("SISA__RECIPE__TRAINING__SEED", "5")
    assert config.load(folder).recipe.training.seed == 5


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("recipe: [", "is no YAML"),
        ("recipe: {a: 1", "is no YAML"),
        ("", "holds no settings"),
        ("- 1", "holds no settings"),
        ("{}", "recipe: Field required"),
        ("recipe:", "recipe: Input should be"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path, text, reason):
    (tmp_path / "sisa.yaml").write_text(text)
    with pytest.raises(ConfigurationError, match=reason):
        load(tmp_path)


def test_a_file_in_another_encoding_is_refused(tmp_path):
    (tmp_path / "sisa.yaml").write_bytes("recipe: {data: {target: größe}}".encode("latin-1"))
    with pytest.raises(ConfigurationError, match="is no YAML"):
        load(tmp_path)


def test_without_a_file_there_is_no_workspace(tmp_path):
    with pytest.raises(NotFoundError, match=r"No sisa\.yaml"):
        load(tmp_path)
    with pytest.raises(NotFoundError, match=r"No sisa\.yaml"):
        config.find(tmp_path)


def test_a_workspace_is_found_upward(folder):
    deep = folder / "a" / "b"
    deep.mkdir(parents=True)
    assert config.find(deep) == config.find(folder) == folder


def test_what_is_dumped_is_what_is_loaded(tmp_path):
    body = with_value("recipe.training", {"lr": 1e-3, "epochs": 0.5})
    body["recipe"]["data"] = {
        **DATA,
        "classes": ["yes", "no", "1", "null", "ü"],
        "features": {"a: b": "float64", "größe": "uint8[784]", "1e3": "text"},
        "categories": {"1e3": ["on", "~", "x # y"]},
    }
    body["runtime"] = {"sources": ["my data/a.csv"], "tracking": {"uri": None}}
    once = config.validate(body)
    (tmp_path / "sisa.yaml").write_text(config.dump(once), "utf-8")
    assert load(tmp_path) == once
    assert config.dump(load(tmp_path)) == config.dump(once)


def test_sections_are_frozen():
    with pytest.raises(ValidationError, match="frozen"):
        recipe().training.lr = 1.0


# What follows is about digests.

TRAINING: dict[str, Any] = {
    "epochs": 11,
    "batch_size": 65,
    "min_batch": 3,
    "optimizer": "adam",
    "lr": 0.06,
    "momentum": 0.8,
    "weight_decay": 0.1,
    "optimizer_params": {"nesterov": True},
    "loss": "mse",
    "schedule": "last_stage_linear",
    "warmup": 0.1,
    "last_stage_epochs": 2,
    "label_smoothing": 0.1,
    "class_weights": [1, 2],
    "clip_norm": 1,
    "optimizer_state": "carry",
    "seed": 1,
    "threads": 2,
}
LEARNER: dict[str, Any] = {"factory": "logistic", "version": 2, "params": {"hidden": [1]}}
PARTITION: dict[str, Any] = {"shards": 9, "slices": 5}
CHANGED_DATA: dict[str, Any] = {
    "record_id": "key",
    "subject_id": None,
    "target": "z",
    "task": {"task": "regression", "classes": []},
    "classes": ["yes", "no"],
    "features": {"a": "float32", "t": "text"},
    "categories": {"t": ["x"]},
    "hash_buckets": 65,
    "scales": {"features": {"a": "float64[1]", "t": "text"}, "scales": {"a": [0, 1]}},
}
WHOLE = {"task", "scales"}
"""Fields that are changed together with others."""


def changed() -> dict[str, dict[str, Any]]:
    """For each field of the hashed sections, sections with another value of it."""
    found: dict[str, dict[str, Any]] = {}
    for section, values in (("training", TRAINING), ("learner", LEARNER), ("partition", PARTITION)):
        found |= {f"{section}.{name}": {section: {name: v}} for name, v in values.items()}
    for name, value in CHANGED_DATA.items():
        found[f"data.{name}"] = {"data": {**DATA, **(value if name in WHOLE else {name: value})}}
    return found


SINGLE_VALUED = {"training.device", "partition.policy"}
"""Fields that can have no value but their default as yet."""


def test_every_hashed_field_is_tried_below():
    models: dict[str, type[BaseModel]] = {
        name: Recipe.model_fields[name].annotation  # type: ignore[misc]
        for name in ("data", "partition", "learner", "training")
    }
    fields = {f"{name}.{field}" for name, model in models.items() for field in model.model_fields}
    assert fields - SINGLE_VALUED == set(changed())
    assert set(Recipe.model_fields) == {*models, "aggregation"}


@pytest.mark.parametrize("name", changed())
def test_every_field_changes_the_training_digest(name):
    before, after = recipe(), recipe(**changed()[name])
    assert before.training_digest("x") != after.training_digest("x")
    fixed = name.startswith(("data.", "partition."))
    assert (before.layout_digest() != after.layout_digest()) == fixed


def test_no_two_changes_have_the_same_training_digest():
    found = [recipe(**sections).training_digest("x") for sections in changed().values()]
    assert len(set(found)) == len(found)


def test_scales_alone_change_both_digests():
    data = CHANGED_DATA["scales"]
    found = [recipe(data={**DATA, **data, "scales": s}) for s in ({}, {"a": [0, 1]}, {"a": [0, 2]})]
    assert len({r.training_digest("x") for r in found}) == 3
    assert len({r.layout_digest() for r in found}) == 3


def test_aggregation_and_runtime_change_no_digest():
    for other in (recipe(aggregation="vote"), recipe(aggregation="log_mean")):
        assert other.training_digest("x") == recipe().training_digest("x")
        assert other.layout_digest() == recipe().layout_digest()
    body = with_value("runtime", {"store": "elsewhere", "executor": {"kind": "process"}})
    assert config.validate(body).recipe == config.validate(BODY).recipe


def test_spelling_out_defaults_changes_no_digest():
    whole = recipe().model_dump(mode="json")
    assert Recipe.model_validate(whole).training_digest("x") == recipe().training_digest("x")
    assert Recipe.model_validate(whole).layout_digest() == recipe().layout_digest()
    for section in ({"training": {"epochs": 10}}, {"training": {"epochs": "10"}}, {"learner": {}}):
        assert recipe(**section).training_digest("x") == recipe().training_digest("x")


def test_the_order_of_features_changes_no_digest():
    turned = {**DATA, "features": dict(reversed(DATA["features"].items()))}
    assert recipe(data=turned).training_digest("x") == recipe().training_digest("x")
    assert recipe(data=turned).layout_digest() == recipe().layout_digest()


def test_code_and_arithmetic_change_the_training_digest(monkeypatch):
    before = recipe().training_digest("x")
    assert recipe().training_digest("y") != before
    monkeypatch.setattr(config, "ARITHMETIC", config.ARITHMETIC + 1)
    assert recipe().training_digest("x") != before


def test_digests_of_a_fixed_recipe_never_change():
    """Otherwise every stored stage would be trained again, and every workspace be refused."""
    assert (
        recipe().layout_digest()
        == "2878cf5b8bddbe943b87472250d082b32465b7b46003df519bd2106542145132"
    )
    assert (
        recipe().training_digest("code")
        == "a15cbbe76ed670cb91e3b465482110c0d972f126814dacbc3b00f0992a9bbfd2"
    )
    other = recipe(
        partition={"shards": 3},
        learner={"factory": "logistic", "params": {"b": 1, "a": [0.5]}},
        training={"lr": 1e-3, "epochs": 4},
    )
    assert (
        other.layout_digest() == "0ecde5a93114d90a379c6c4cb14987510c9b0523d07a99618be7e930fc678df3"
    )
    assert (
        other.training_digest("code")
        == "f9c537c20b84f5eb65a460a59365c525914993629711344d8e151a707ded4c67"
    )


def test_a_digest_is_that_of_canonical_json():
    assert (
        canonical_json(
            recipe(training={"lr": 1e-3}).training.model_dump(mode="json", exclude_defaults=True)
        )
        == b'{"lr":0.001}'
    )

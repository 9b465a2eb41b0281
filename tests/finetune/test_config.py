"""The finetuning config: defaults that depend on each other, and what is refused, by field."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from recgpt.config import dump_config, load_config, parse_yaml
from recgpt.errors import ConfigError
from recgpt.model import ModelConfig
from tests.finetune.logs import FinetuneConfig, complete, merged

DATA = {
    "events": "log.parquet",
    "user": "user",
    "item": "item",
    "time": "time",
    "outcomes": {"click": {"kind": "binary"}, "like": {"kind": "binary"}, "seconds": {"kind": "watch_time"}},
    "impressions": {},
}
LEAST: dict[str, Any] = {"data": DATA, "tasks": {"outcomes": ["click"]}}


def config(*words: str, **sections: Any) -> FinetuneConfig:
    return load_config(FinetuneConfig, merged(LEAST, sections), words)


def test_the_least_config() -> None:
    found = config()
    run = found.run
    assert (run.epochs, run.evaluate_every, run.select, run.patience) == (5, 0.25, "best", 4)
    assert (found.tasks.fit_on, found.tasks.backbone_lr) == ("train", None)
    assert found == load_config(FinetuneConfig, parse_yaml(dump_config(found), "saved"))


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run.steps=9"], (None, 9, 0.25, "best", 4)),
        (["run.epochs=2", "run.patience=null"], (2, None, 0.25, "best", None)),
        (["run.select=last"], (5, None, 0.25, "last", None)),  # nothing to be patient for
        (["run.evaluate_every=0"], (5, None, 0, "last", None)),  # nothing to select by
        (["run.evaluate_every=20", "run.patience=2"], (5, None, 20, "best", 2)),
    ],
)
def test_defaults_give_way_to_what_is_set(words: list[str], expected: tuple[Any, ...]) -> None:
    found = config(*words)
    run = found.run
    assert (run.epochs, run.steps, run.evaluate_every, run.select, run.patience) == expected
    assert found == load_config(FinetuneConfig, parse_yaml(dump_config(found), "saved"))


def test_the_given_values_are_left_as_they_are() -> None:
    given = {"data": DATA, "tasks": {"outcomes": ["click"]}, "run": {"steps": 3}}
    FinetuneConfig.model_validate(given)
    assert given["run"] == {"steps": 3}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"impressions": None}}, "data.impressions: missing; say which events are impressions"),
        (
            {"tasks": {"outcomes": ["buy"]}},
            "tasks.outcomes: 'buy' is not declared; data.outcomes has click, like, seco",
        ),
        ({"tasks": {"outcomes": ["seconds"]}}, "tasks.outcomes: 'seconds' is watch_time; the heads predict binary out"),
        ({"tasks": {"outcomes": ["like", "like"]}}, r"tasks.outcomes: a name stands twice in \['like', 'like'\]"),
        ({"tasks": {"outcomes": []}}, "tasks.outcomes: .*at least 1"),
        ({"tasks": {"weights": {"like": 2.0}}}, "tasks.weights.like: not among outcomes; they are click"),
        ({"tasks": {"weights": {"click": -1.0}}}, "tasks.weights.click: .*greater than or equal to 0"),
        ({"tasks": {"score": {"weights": {"like": 1}}}}, "tasks.score.weights.like: no such outcome is predicted"),
        ({"tasks": {"score": {"kind": "mean"}}}, "tasks.score.kind: .*'sum' or 'product'"),
        ({"tasks": {"backbone_lr": -0.1}}, "tasks.backbone_lr: "),
        ({"tasks": {"fit_on": "test"}}, "tasks.fit_on: .*'train' or 'train_valid'"),
        ({"heads": {"behavior": "din"}}, "heads.behavior: unknown key .*did you mean 'behaviour'"),
        ({"run": {"patience": 3, "select": "last"}}, "run.patience: needs select: best"),
        ({"run": {"evaluate_every": 1.5}}, "run.evaluate_every: 1.5 is no whole number of steps"),
        ({"run": {"stop_at": 1.2}}, "run.stop_at: "),
    ],
)
def test_what_does_not_fit_is_named_by_its_field(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"config: {message}"):
        config(**sections)


def test_tasks_are_needed() -> None:
    with pytest.raises(ConfigError, match="config: tasks: missing"):
        load_config(FinetuneConfig, {"data": DATA})


# -- what depends on the run that it starts from -----------------------------------------------------------------------


def start(**model: Any) -> Any:
    return SimpleNamespace(config=ModelConfig.model_validate(model))


def test_the_event_model_s_rate() -> None:
    assert complete(config(), None).tasks.backbone_lr == 1.0
    assert complete(config(), start()).tasks.backbone_lr == 0.1
    for rate in (0.0, 0.5):
        assert complete(config(f"tasks.backbone_lr={rate}"), start()).tasks.backbone_lr == rate
    assert complete(config("tasks.backbone_lr=0.5"), None).tasks.backbone_lr == 0.5
    with pytest.raises(ConfigError, match="tasks.backbone_lr: 0 freezes an event model that nothing trained; add --fr"):
        complete(config("tasks.backbone_lr=0"), None)


def test_settings_that_are_not_given_are_the_pretrained_run_s() -> None:
    pretrained = start(dim=32, heads=4, dropout=0.3, id={"rows": 50, "n_hashes": 3, "seed": 7}, window={"length": 512})
    assert complete(config(), pretrained).model == pretrained.config
    found = complete(config(model={"dropout": 0.1, "id": {"rows": 50}, "window": {"length": 1024}}), pretrained).model
    expected = pretrained.config.model_dump()
    expected |= {"dropout": 0.1, "window": expected["window"] | {"length": 1024}}
    assert found.model_dump() == expected  # n_hashes, seed and stride too: they are not of the sections' defaults
    assert complete(config(model={"dim": 128}), None).model.dim == 128


def test_settings_that_do_not_fit_the_pretrained_run_s_are_refused() -> None:
    with pytest.raises(ConfigError) as caught:
        complete(config("model.heads=8"), start(dim=24, heads=2))
    assert "heads: 8 must divide dim 24" in str(caught.value)
    assert "\n" not in str(caught.value)

"""Auxiliary targets in the pretraining task: which events of a log count, what the loss gains, what is exported."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from recgpt.config import load_config
from recgpt.data.prepare import prepare
from recgpt.errors import ConfigError
from recgpt.losses.auxiliary import predicted_events
from recgpt.model import EventModel
from recgpt.stages import load_stage
from tests.recgpt.builders import write_log

pretrain = load_stage("pretrain")

from recgpt.pretrain.config import PretrainConfig  # noqa: E402 (a stage is found by `load_stage`)
from recgpt.pretrain.task import PretrainTask  # noqa: E402


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Few events are declared targets; the longest user has four windows."""
    data = write_log(tmp_path_factory.mktemp("log"), [3, 5, 9, 18, 26, 45])
    return data | {"target": {"outcome": "click", "min": 1}}


def task(data: dict[str, Any], state: int = 0, **auxiliary: Any) -> PretrainTask:
    """A task made while torch's global generator stands at `state`."""
    window = {"length": 16, "stride": 8, "chunk": 4}
    values = {
        "data": data,
        "model": {"dim": 16, "heads": 2, "dropout": 0.0, "id": {"rows": 97}, "window": window},
        "loss": {"estimate_slots": 64, "targets": "all", "auxiliary": auxiliary},
        "optim": {"precision": "fp32", "batch_tokens": 100},
        "run": {"steps": 4},
    }
    config = load_config(PretrainConfig, values)
    prepared = prepare(config.data, progress=False)
    torch.manual_seed(state)
    made = PretrainTask(config, prepared, EventModel(config.model, prepared.schema))
    made.model.train()
    return made


def test_every_input_event_counts_once(data: dict[str, Any]) -> None:
    """All training events but those that follow a window's last input (8 apart, and the last of all)."""
    made = task(data)
    users, windows = made.prepared.users, made.data.windows
    counted: Counter[int] = Counter()
    for rows in made.data.order(0):
        batch = made.data.batch(rows)
        row, event = predicted_events(batch) // batch.item.shape[1], predicted_events(batch) % batch.item.shape[1]
        counted.update((windows.first[rows][row.numpy()] + event.numpy()).tolist())
    expected = []
    for offset, end in zip(users.offset.tolist(), users.train_end.tolist(), strict=True):
        expected += [offset + n for n in range(end - 1) if n < 16 or n % 8 != 0]
    assert sorted(counted) == expected
    assert set(counted.values()) == {1}


def test_the_heads_start_from_the_run_s_seed_alone(data: dict[str, Any]) -> None:
    """Whatever was drawn before: two starts of one config train the same model."""
    heads = [task(data, state, outcomes=1.0, time=1.0).model.auxiliary for state in (0, 1)]
    first, again = (dict(head.named_parameters()) for head in heads if head is not None)
    assert first.keys() == again.keys()
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_the_loss_is_the_next_items_and_the_weighted_terms(data: dict[str, Any]) -> None:
    plain, both = task(data), task(data, outcomes=0.5, time=2.0, time_targets=["gap", "hour"])
    batch = next(iter(plain.batches(0, 0)))
    base, result = plain.step(batch), both.step(batch)
    terms = {name: value for name, value in result.metrics.items() if name.startswith("auxiliary.")}
    assert set(terms) == {"auxiliary.outcomes.click", "auxiliary.time.gap", "auxiliary.time.hour"}
    added = 0.5 * terms["auxiliary.outcomes.click"] + terms["auxiliary.time.gap"] + terms["auxiliary.time.hour"]
    assert result.loss.item() == pytest.approx(base.loss.item() + added, abs=1e-5)
    assert terms["auxiliary.outcomes.click"] == pytest.approx(0.69, abs=0.4)
    result.loss.backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in both.model.auxiliary.parameters())
    assert not any(name.startswith("auxiliary") for name in plain.model.state_dict())
    assert not any(name.startswith("auxiliary.") for name in base.metrics)


def test_the_exported_model_has_no_heads(data: dict[str, Any], tmp_path: Path) -> None:
    plain, both = task(data), task(data, outcomes=0.5)
    for made, folder in ((plain, tmp_path / "plain"), (both, tmp_path / "both")):
        folder.mkdir()
        made.export(folder)
    weights = [folder / "model.safetensors" for folder in (tmp_path / "plain", tmp_path / "both")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_what_the_log_lacks_is_told(data: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="loss.auxiliary.context: 0.1, .* no context columns; declare data.context"):
        task(data, context=0.1)


def test_a_model_that_sees_later_events_is_refused(data: dict[str, Any]) -> None:
    values = {"data": data, "model": {"causal": False}, "loss": {"auxiliary": {"time": 0.1}}}
    with pytest.raises(ConfigError, match=r"loss.auxiliary: .* set model.causal: true"):
        load_config(PretrainConfig, values)

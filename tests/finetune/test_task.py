"""The finetuning task: its loss by hand, one pass for many impressions, what it knows, what it validates."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from recgpt.api import RecGPT
from recgpt.data.batch import collate, gap_between, hours
from recgpt.data.events import NO_TIME, Events
from recgpt.data.hashing import hash_id
from recgpt.data.impression_batches import ImpressionBatch
from recgpt.data.prepared import Prepared
from recgpt.errors import ConfigError
from recgpt.outcome_metrics import auc
from recgpt.ranking.network import Requests
from recgpt.state import known_only
from tests.finetune.logs import FinetuneTask, make_task, prepared_log, random_log, settings, write

from recgpt.finetune.task import fitted_items, intercepts, log_loss  # isort: skip (a stage is found by `load_stage`)

NAN = math.nan
STILL = {"model": {"dropout": 0.0, "id_dropout": 0.0}, "heads": {"dropout": 0.0}}


# -- the loss ----------------------------------------------------------------------------------------------------------


def loss_and_gradient(logits: list[list[float]], labels: list[list[float]], weights: list[float]) -> tuple[float, Any]:
    given = torch.tensor(logits, requires_grad=True)
    loss = log_loss(given, torch.tensor(labels, dtype=torch.float32), torch.tensor(weights, dtype=torch.float32))
    loss.backward()
    assert given.grad is not None
    return loss.item(), given.grad.tolist()


LN2, LN3 = math.log(2), math.log(3)


def test_log_loss_by_hand() -> None:
    # p = 3/4, 1/2, 1/4: -log 3/4, -log 1/2 and -log 1/4 are log 4 - log 3, log 2 and log 4.
    loss, gradient = loss_and_gradient([[LN3], [0.0], [-LN3]], [[1], [0], [1]], [1.0])
    assert loss == pytest.approx((2 * LN2 - LN3 + LN2 + 2 * LN2) / 3)
    assert gradient == pytest.approx(np.array([[-1 / 4], [1 / 2], [-3 / 4]]) / 3)


def test_unknown_outcomes_neither_cost_nor_count() -> None:
    loss, gradient = loss_and_gradient([[LN3, 0.0], [5.0, 0.0], [-LN3, LN3]], [[1, NAN], [NAN, 0], [0, NAN]], [1, 1])
    assert loss == pytest.approx(2 * (2 * LN2 - LN3) / 2 + LN2)
    np.testing.assert_allclose(gradient, [[-1 / 8, 0], [0, 1 / 2], [1 / 8, 0]], atol=1e-7)


def test_weights_multiply_an_outcome_s_loss() -> None:
    logits, labels = [[LN3, 0.0]], [[0, 1]]
    loss, gradient = loss_and_gradient(logits, labels, [0.5, 3.0])
    assert loss == pytest.approx(0.5 * 2 * LN2 + 3 * LN2)
    np.testing.assert_allclose(gradient, [[0.5 * 3 / 4, -3 * 1 / 2]], atol=1e-7)


def test_an_outcome_that_nobody_knows_adds_nothing() -> None:
    loss, gradient = loss_and_gradient([[LN3, 7.0], [0.0, -80.0]], [[1, NAN], [0, NAN]], [1, 1])
    assert loss == pytest.approx((2 * LN2 - LN3 + LN2) / 2)
    assert [row[1] for row in gradient] == [0.0, 0.0]


@pytest.mark.parametrize("rows", [0, 1, 3])
def test_a_batch_without_any_label_gives_zero_and_no_gradient(rows: int) -> None:
    given = torch.randn(rows, 2, requires_grad=True)
    loss = log_loss(given, torch.full((rows, 2), NAN), torch.ones(2))
    loss.backward()
    assert loss.item() == 0.0
    assert given.grad is not None
    assert torch.equal(given.grad, torch.zeros(rows, 2))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_a_batch_of_one_class_is_finite_however_sure_the_model_is(label: float) -> None:
    loss, gradient = loss_and_gradient([[-200.0], [0.0], [200.0]], [[label]] * 3, [1.0])
    assert loss == pytest.approx((200 + LN2) / 3)
    assert np.isfinite(gradient).all()


# -- one pass for many -------------------------------------------------------------------------------------------------


def biggest(task: FinetuneTask) -> list[ImpressionBatch]:
    return max(task.batches(0, 0), key=lambda batch: len(rows_of(batch)))


def rows_of(batch: list[ImpressionBatch]) -> list[int]:
    return torch.cat([part.row for part in batch]).tolist()


def one_by_one(task: FinetuneTask, prepared: Prepared, batch: list[ImpressionBatch]) -> Tensor:
    """The definition: each impression with a pass of its own over its own history, its log loss by the formula."""
    data, events, network = task.data, task.model.events, task.model.network
    names, total, rows = task.config.tasks.outcomes, torch.zeros(()), rows_of(batch)
    labels = [prepared.events(p, p + 1).outcomes for p in data.impressions.place[rows]]
    known = {name: sum(not np.isnan(each[name][0]) for each in labels) for name in names}
    for row, label in zip(rows, labels, strict=True):
        offset, place = int(prepared.users.offset[data.user[row]]), int(data.impressions.place[row])
        h = int(data.impressions.online[row])
        profile = {name: column[0].item() for name, column in prepared.profile([data.user[row]]).items()}
        log = prepared.events(offset + task.config.model.window.start(h), offset + h).with_profile(profile)
        shown = prepared.events(place, place + 1)
        logits = alone(task, events, network, log, shown)
        for column, name in enumerate(names):
            y = label[name][0]
            if not np.isnan(y):
                p = torch.sigmoid(logits[0, column])
                total = total - task.weights[column] * (p if y else 1 - p).log() / known[name]
    return total


def alone(task: FinetuneTask, events: Any, network: Any, log: Events, shown: Events) -> Tensor:
    inputs = known_only(collate([log], task.data.prepared.items, width=len(log)), task.items.trained)
    candidate = known_only(collate([shown], task.data.prepared.items, width=1), task.items.trained)
    encoded = events.encode_items(candidate)
    hidden = events(inputs)
    last = log.time[-1:] if len(log) else np.full(1, NO_TIME)
    requests = Requests(
        state=torch.tensor([0]),
        visible=torch.tensor([len(log) + 1]),
        query=events.queries(hidden[0, -1:]),
        encoded=encoded,
        vector=events.vectors(encoded),
        item=candidate.items,
        hour=torch.from_numpy(hours(shown.time)),
        gap=torch.from_numpy(gap_between(last, shown.time)),
        features=candidate.features,
        context={name: torch.from_numpy(column.copy()) for name, column in shown.context.items()},
    )
    return network(network.read(hidden), requests)


def gradients(task: FinetuneTask, loss: Tensor) -> dict[str, Tensor]:
    task.model.zero_grad(set_to_none=True)
    loss.backward()
    return {name: p.grad.clone() for name, p in task.model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("behaviour", "softmax"), [("din", True), ("din", False), ("pool", True)])
def test_one_pass_for_many_equals_a_pass_each(
    data: dict[str, Any], prepared: Prepared, behaviour: str, softmax: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loss and gradients to 1e-6, in double: rounding must not hide a difference."""
    monkeypatch.setattr(torch.Tensor, "float", torch.Tensor.double)
    values = settings(data, **STILL, optim={"batch_tokens": 10**6}, tasks={"weights": {"like": 0.3}})
    values["heads"] |= {"behaviour": behaviour, "softmax": softmax}
    task = make_task(values, prepared, noise=0.2)
    task.model.double()
    task.weights = task.weights.double()
    rotary = task.model.events.transformer.rotary
    rotary.turn = rotary.turn.to(torch.complex128)
    batch = biggest(task)
    assert len(batch) > 1
    assert len(rows_of(batch)) == len(task.data) > 3 * sum(len(part.events.length) for part in batch)
    plain = one_by_one(task, prepared, batch)
    result = task.step(batch)
    assert result.targets == len(rows_of(batch))
    assert result.loss.dtype == plain.dtype == torch.float64
    assert result.loss.item() == pytest.approx(plain.item(), abs=1e-6)
    expected, found = gradients(task, plain), gradients(task, task.step(batch).loss)
    assert found.keys() == expected.keys()
    assert len(found) > 20
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-6, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        without_effect = softmax and name == "network.behaviour.weight.bias"  # it is the same for all events
        assert without_effect or gradient.abs().max() > 1e-5, name


def test_every_batch_is_the_sum_of_its_impressions_in_float32(data: dict[str, Any], prepared: Prepared) -> None:
    task = make_task(settings(data, **STILL), prepared, noise=0.1)
    for batch in task.batches(0, 0):
        assert task.step(batch).loss.item() == pytest.approx(one_by_one(task, prepared, batch).item(), abs=1e-5)


# -- what it knows -----------------------------------------------------------------------------------------------------


def test_which_ids_the_model_knows(prepared: Prepared, pretrained: Path) -> None:
    start = RecGPT.from_pretrained(pretrained)
    log, trained = prepared.events(0, prepared.n_events), prepared.items.n_train_events
    valid = prepared.impressions(0, prepared.n_events)
    valid_items = np.isin(prepared.items.hash, log.item[valid.place[valid.part == 1]])
    known = {
        (fit_on, frozen, name): fitted_items(prepared, run, fit_on, frozen).trained.tolist()
        for fit_on in ("train", "train_valid")
        for frozen in (True, False)
        for name, run in (("scratch", None), ("start", start))
        if not (frozen and run is None)
    }
    by_train = sorted(prepared.items.hash[trained > 0].tolist())
    by_both = sorted(prepared.items.hash[(trained > 0) | valid_items].tolist())
    assert len(by_train) < len(by_both)
    assert known == {
        ("train", False, "scratch"): by_train,
        ("train", False, "start"): by_train,
        ("train", True, "start"): by_train,
        ("train_valid", False, "scratch"): by_both,
        ("train_valid", False, "start"): by_both,
        ("train_valid", True, "start"): by_train,  # a frozen event model learns no id
    }


def test_ids_that_only_the_pretrained_run_knows_stay_known(pretrained: Path, tmp_path: Path) -> None:
    start = RecGPT.from_pretrained(pretrained)
    log = random_log()
    some = {log["item"][row] for row, part in enumerate(log["part"]) if part == 0 and log["item"][row] % 3 == 0}
    log["part"] = [2 if item in some else part for item, part in zip(log["item"], log["part"], strict=True)]
    other = prepared_log(tmp_path, log)
    hashes = {hash_id(item) for item in some}
    assert len(hashes) > 10
    assert not hashes & set(other.items.trained.tolist())
    counts = {frozen: fitted_items(other, start, "train", frozen) for frozen in (True, False)}
    for frozen in (True, False):
        assert hashes <= set(counts[frozen].trained.tolist())
    both = np.maximum(counts[True].n_train_events, other.items.n_train_events)
    assert counts[False].n_train_events.tolist() == both.tolist()


def test_ids_that_training_does_not_know_are_hidden_everywhere(prepared: Prepared, data: dict[str, Any]) -> None:
    task = make_task(settings(data, **STILL), prepared, noise=0.1)
    batch = biggest(task)
    before = task.step(batch).loss.item()
    task.items = replace(task.items, n_train_events=np.zeros(len(task.items), np.int64))
    hidden = task.step(batch).loss.item()
    assert hidden != before
    with torch.no_grad():
        for table in (task.model.events.items.id.table, task.model.network.id.table):
            table.weight.add_(1.0)
    assert task.step(batch).loss.item() == hidden  # no id was looked up


# -- validation, files -------------------------------------------------------------------------------------------------


def shift_by_bisection(task: FinetuneTask, column: int) -> float:
    """What added to an outcome's logits makes the mean probability of the training impressions its rate."""
    logits, labels = [], []
    with torch.no_grad():
        for part in (part for batch in task.data.epoch(None) for part in batch):
            known = replace(part, events=known_only(part.events, task.items.trained))
            logits += task.model(known)[:, column].tolist()
            labels += task.labels(part)[:, column].tolist()
    told = ~np.isnan(labels)
    low, high, rate = -30.0, 30.0, np.array(labels)[told].mean()
    for _ in range(100):
        middle = (low + high) / 2
        mean = (1 / (1 + np.exp(-np.array(logits)[told] - middle))).mean()
        low, high = (middle, high) if mean < rate else (low, middle)
    return low


def test_intercepts_make_the_mean_probability_the_rate() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [0.0, 3.0, 1.0], [0.0, 3.0, 1.0], [0.0, 3.0, 1.0], [9.0, 9.0, 9.0]])
    nan = float("nan")
    labels = torch.tensor([[1.0, 1.0, 1.0], [0.0, 1.0, 1.0], [0.0, 0.0, 1.0], [0.0, 1.0, nan], [nan, nan, nan]])
    found = intercepts(logits, labels)
    # The rates are 1/4 and 3/4: logits -log 3 and log 3. The third outcome knows one class and stays.
    np.testing.assert_allclose(found, [-np.log(3), np.log(3) - 3, 0.0], atol=1e-9)
    assert intercepts(logits, torch.full_like(labels, nan)).tolist() == [0.0, 0.0, 0.0]


@pytest.mark.parametrize("logit", [-30.0, -4.6, 6.0, 30.0])
def test_intercepts_are_found_from_far_away(logit: float) -> None:
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0, 0.0])[:, None]
    found = intercepts(torch.full((5, 1), logit), labels)
    np.testing.assert_allclose(found, [np.log(0.2 / 0.8) - logit], rtol=1e-6)


def test_what_is_exported_is_calibrated_without_dropout(
    data: dict[str, Any], prepared: Prepared, tmp_path: Path
) -> None:
    task = make_task(settings(data), prepared, noise=0.3)
    task.model.eval()
    before = [shift_by_bisection(task, column) for column in range(2)]
    assert min(abs(shift) for shift in before) > 1e-3
    task.export(tmp_path)
    np.testing.assert_allclose([shift_by_bisection(task, column) for column in range(2)], [0, 0], atol=1e-5)


def test_validation_by_the_formula(data: dict[str, Any], prepared: Prepared) -> None:
    task = make_task(settings(data, tasks={"weights": {"like": 0.25}}), prepared, noise=0.1)
    task.model.eval()
    with torch.no_grad():
        found = task.evaluate()
        p = {}
        for batch in task.valid.epoch(None):
            for part in batch:
                known = replace(part, events=known_only(part.events, task.items.trained))
                p |= dict(zip(part.row.tolist(), torch.sigmoid(task.model(known)).tolist(), strict=True))
    shift = [shift_by_bisection(task, column) for column in range(2)]
    log = prepared.events(0, prepared.n_events)
    place = task.valid.impressions.place
    assert len(p) == len(place) > 20
    for column, name in enumerate(("click", "like")):
        rows = [row for row in range(len(place)) if not np.isnan(log.outcomes[name][place[row]])]
        y = np.array([log.outcomes[name][place[row]] for row in rows])
        odds = np.array([p[row][column] / (1 - p[row][column]) for row in rows]) * np.exp(shift[column])
        q = odds / (1 + odds)
        loss = -np.log(np.where(y == 1, q, 1 - q)).mean()
        assert found[f"logloss.{name}"] == pytest.approx(loss, rel=1e-5)
        assert found[f"auc.{name}"] == pytest.approx(auc(y, q), abs=1e-6)
    assert found["logloss"] == pytest.approx(found["logloss.click"] + 0.25 * found["logloss.like"])
    assert len(found) == 5


@pytest.mark.parametrize(
    ("click", "like", "names"),
    [(1, None, {"logloss", "logloss.click"}), (None, 0, {"logloss", "logloss.like"}), (None, None, set())],
)
def test_what_is_undefined_is_left_out_of_the_validation(
    tmp_path: Path, click: int | None, like: int | None, names: set[str]
) -> None:
    """One class: no auc. Never known: nothing of it, and it adds nothing to the sum."""
    log = random_log()
    for name, value in (("click", click), ("like", like)):
        log[name] = [value if part == 1 else y for y, part in zip(log[name], log["part"], strict=True)]
    found = make_task(settings(write(tmp_path, log)), prepared_log(tmp_path, log)).evaluate()
    assert found.keys() == names
    assert len(set(found.values())) == len(names) // 2
    assert all(value > 0 for value in found.values())


def test_a_dumped_batch_holds_every_tensor(data: dict[str, Any], prepared: Prepared, tmp_path: Path) -> None:
    task = make_task(settings(data), prepared)
    batch = biggest(task)
    task.dump_batch(batch, tmp_path / "batch.safetensors")
    read = load_file(tmp_path / "batch.safetensors")
    events = {
        "items",
        "item",
        "length",
        "gap",
        "time",
        "head",
        "skip",
        "position",
        "target",
        "outcomes.click",
        "outcomes.like",
    }
    events |= {"context.device", "context.volume", "features.brand", "profile.country", "profile.age"}
    own = {"hour", "gap", "row", "labels.click", "labels.like", "context.device", "context.volume"}
    names = own | {f"events.{name}" for name in events}
    assert len(batch) > 1
    assert read.keys() == {f"{number}.{name}" for number in range(len(batch)) for name in names}
    for number, part in enumerate(batch):
        assert torch.equal(read[f"{number}.events.item"], part.events.item)
        torch.testing.assert_close(read[f"{number}.labels.like"], part.labels["like"], equal_nan=True)


# -- refusals ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("parts", "run", "named"),
    [((0, 1), {}, "data.impressions: none is in the training part"), ((1, 1), {}, "run.select: best")],
)
def test_a_log_without_what_it_needs_is_refused(
    tmp_path: Path, parts: tuple[int, int], run: dict[str, Any], named: str
) -> None:
    log = random_log([4, 6, 5])
    train, valid = parts
    log["shown"] = [part == 2 or (part == 0 and train == 1) for part in log["part"]]
    values = settings(write(tmp_path, log), run={"select": "best", "evaluate_every": 2, "patience": None})
    with pytest.raises(ConfigError) as caught:
        make_task(values, prepared_log(tmp_path, log))
    assert str(caught.value).startswith(named)
    assert "\n" not in str(caught.value)

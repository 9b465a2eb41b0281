"""Auxiliary targets: contract and arithmetic of each head, which events count, what is learned and what cannot leak."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from recgpt.config import load_config
from recgpt.data.batch import N_GAP_BUCKETS, EventBatch, collate, gap_buckets
from recgpt.data.events import NO_TIME, Events
from recgpt.errors import ConfigError
from recgpt.losses.auxiliary import (
    AUXILIARY_TARGETS,
    AuxiliaryConfig,
    AuxiliaryLosses,
    CategoryTarget,
    ContentTarget,
    NumberTarget,
    predicted_events,
)
from recgpt.nn.time import DAY, WEEK
from tests.recgpt.builders import events, items, recgpt, schema

ALL = {"outcomes": 0.3, "context": 0.2, "content": 0.1, "time": 0.4, "time_targets": ["gap", "log_gap", "hour", "day"]}
NAMES = {
    "outcomes.click",
    "outcomes.seconds",
    "context.device",
    "context.volume",
    "content",
    "time.gap",
    "time.log_gap",
    "time.hour",
    "time.day",
}
VALUES = {
    "binary": torch.tensor([0.0, 1.0, 1.0]),
    "regression": torch.tensor([-3.0, 0.0, 1e30]),
    "watch_time": torch.tensor([0.0, 5.0, 1e30]),
    "numeric": torch.tensor([-3.0, 0.0, 1e30]),
    "categorical": torch.tensor([-9, 4, 4]),
    "gap": torch.tensor([1, 5, 33]),
    "log_gap": torch.tensor([0.0, 60.0, 1e9]),
    "hour": torch.tensor([1, 24, 9]),
    "day": torch.tensor([1, 7, 3]),
}


def built(**config: object) -> AuxiliaryLosses:
    torch.manual_seed(0)
    return AuxiliaryLosses(AuxiliaryConfig.model_validate(ALL | config), schema(), 16)


def batch(skip: int = 0) -> EventBatch:
    windows = [events(7), events(4, 1), events(1, 2)]
    return replace(collate(windows, items(), width=9), skip=torch.full((3,), skip))


@pytest.mark.parametrize("kind", sorted(AUXILIARY_TARGETS))
def test_contract_a_head_learns_its_values(kind: str) -> None:
    """Scalar, finite, differentiable; and a few steps of descent go down."""
    torch.manual_seed(0)
    head, values = AUXILIARY_TARGETS[kind](8), VALUES[kind]
    hidden = torch.randn(3, 8)
    optimizer = torch.optim.Adam(head.parameters(), 0.05)
    losses = []
    for _ in range(30):
        loss = head(hidden, values)
        assert loss.shape == ()
        assert loss.isfinite()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < losses[0] - 0.1


def test_number_by_hand() -> None:
    head = NumberTarget(1)
    with torch.no_grad():
        head.linear.weight.fill_(1.0)
        head.linear.bias.fill_(0.5)
    # predictions 0.5 and 2.5 for asinh values 1 and 0: 0.5^2 / 2 and 2.5 - 1/2
    loss = head(torch.tensor([[0.0], [2.0]]), torch.tensor([math.sinh(1.0), 0.0]))
    assert loss.item() == pytest.approx((0.125 + 2.0) / 2, abs=1e-6)


def test_category_is_cross_entropy_over_the_distinct_values() -> None:
    torch.manual_seed(0)
    head = CategoryTarget(8)
    hidden, values = torch.randn(6, 8), torch.tensor([5, -2, 5, 11, -2, 5])
    scores = head.query(hidden) @ head.values(torch.tensor([-2, 5, 11])).T
    expected = F.cross_entropy(scores, torch.tensor([1, 0, 1, 2, 0, 1]))
    assert head(hidden, values).item() == pytest.approx(expected.item(), abs=1e-6)
    assert head(hidden, torch.full((6,), 5)).item() == pytest.approx(0, abs=1e-6)  # hits are no negatives


def test_content_is_cross_entropy_over_the_distinct_vectors() -> None:
    torch.manual_seed(0)
    head = ContentTarget(3, 8, 0.5)
    hidden, content = torch.randn(4, 8), torch.randn(5, 3)
    content[4] = content[1]  # another item, the same vector
    rows = torch.tensor([1, 3, 4, 1])
    scores = F.normalize(head.linear(hidden), dim=-1) @ F.normalize(content[[1, 3]], dim=-1).T / 0.5
    expected = F.cross_entropy(scores, torch.tensor([0, 1, 0, 0]))
    assert head(hidden, rows, content).item() == pytest.approx(expected.item(), abs=1e-6)
    assert head(hidden, rows, 7 * content).item() == pytest.approx(expected.item(), abs=1e-6)  # directions alone


def test_which_events_count() -> None:
    """Those from each window's `skip` to its last input."""
    place = predicted_events(batch(skip=3))
    assert place.tolist() == [3, 4, 5, 6, 9 + 3]  # windows of 7, 4 and 1 events in rows of 9
    assert predicted_events(batch()).tolist() == [*range(7), *range(9, 13), 18]
    assert torch.equal(predicted_events(replace(batch(), skip=None)), predicted_events(batch()))


def test_position_t_predicts_event_t() -> None:
    """Each term equals its head's loss over plain loops."""
    losses, example = built(), batch(skip=2)
    hidden = torch.randn(3, 10, 16)
    terms = losses(hidden, example)
    assert set(terms) == NAMES
    pairs = [(row, t) for row, length in enumerate((7, 4, 1)) for t in range(2, length)]
    for name in ("click", "seconds"):
        known = [(r, t) for r, t in pairs if not math.isnan(example.outcomes[name][r, t])]
        values = torch.stack([example.outcomes[name][r, t] for r, t in known])
        expected = losses.outcomes[name](torch.stack([hidden[r, t] for r, t in known]), values)
        assert terms[f"outcomes.{name}"].item() == pytest.approx(expected.item(), abs=1e-6)
        assert 0 < len(known) < len(pairs)  # some are unknown and do not count
    known = [(r, t) for r, t in pairs if example.context["device"][r, t] != 0]
    values = torch.stack([example.context["device"][r, t] for r, t in known])
    expected = losses.context["device"](torch.stack([hidden[r, t] for r, t in known]), values)
    assert terms["context.device"].item() == pytest.approx(expected.item(), abs=1e-6)
    values = torch.stack([example.item[r, t] for r, t in pairs])
    expected = losses.content(torch.stack([hidden[r, t] for r, t in pairs]), values, example.content)
    assert terms["content"].item() == pytest.approx(expected.item(), abs=1e-6)


def test_time_targets_by_hand() -> None:
    """Thursday 1 January 1970, 23:30; Friday, half an hour on; an unknown time; Friday, an hour on."""
    time = torch.tensor([[84_600, 86_400, 0, 90_000]]) * 10**6
    time[0, 2] = NO_TIME
    example = collate([events(4)], items())
    example = replace(example, time=time, gap=torch.tensor([[0, 11, 0, 0]]))
    losses = built(outcomes=0, context=0, content=0)
    hidden = torch.randn(1, 5, 16)
    terms = losses(hidden, example)
    heads = {name: head for name, head in losses.time.items()}
    read = {name: head.linear(hidden[0]) for name, head in heads.items()}
    hour = F.cross_entropy(read["hour"][[0, 1, 3]], torch.tensor([23, 0, 1]))
    day = F.cross_entropy(read["day"][[0, 1, 3]], torch.tensor([0, 1, 1]))
    gap = F.cross_entropy(read["gap"][[1]], torch.tensor([10]))
    log_gap = F.huber_loss(read["log_gap"][1], torch.tensor([math.asinh(1800.0)]))
    assert terms["time.hour"].item() == pytest.approx(hour.item(), abs=1e-6)
    assert terms["time.day"].item() == pytest.approx(day.item(), abs=1e-6)
    assert terms["time.gap"].item() == pytest.approx(gap.item(), abs=1e-6)
    assert terms["time.log_gap"].item() == pytest.approx(log_gap.item(), abs=1e-6)
    assert read["gap"].shape[-1] == N_GAP_BUCKETS - 1


def test_weights_times_group_means() -> None:
    terms = {name: torch.tensor(float(place)) for place, name in enumerate(sorted(NAMES))}
    # content 0; context.device 1, .volume 2; outcomes.click 3, .seconds 4; time.day 5 .. time.log_gap 8
    expected = 0.1 * 0 + 0.2 * 1.5 + 0.3 * 3.5 + 0.4 * 6.5
    assert built().weighted(terms).item() == pytest.approx(expected, abs=1e-6)


def test_unknown_values_padding_and_earlier_events_change_nothing() -> None:
    losses, example = built(), batch(skip=2)
    hidden = torch.randn(3, 10, 16, requires_grad=True)
    losses.weighted(losses(hidden, example)).backward()
    touched = hidden.grad.abs().amax(-1) > 0
    assert touched[0].nonzero().flatten().tolist() == [2, 3, 4, 5, 6]
    assert touched[1].nonzero().flatten().tolist() == [2, 3]
    assert not touched[2].any()
    unknown = replace(
        example,
        outcomes={name: torch.full_like(each, torch.nan) for name, each in example.outcomes.items()},
        context={
            "device": torch.zeros_like(example.context["device"]),
            "volume": torch.full_like(example.context["volume"], torch.nan),
        },
        content=torch.zeros_like(example.content),
        time=torch.full_like(example.time, NO_TIME),
        gap=torch.zeros_like(example.gap),
    )
    terms = losses(hidden, unknown)
    assert set(terms) == NAMES
    assert all(term.item() == 0 for term in terms.values())
    losses.weighted(terms).backward()


def test_no_event_predicts_itself() -> None:
    """What event 3 says of itself moves hidden vectors from position 4 on, and no prediction up to its own."""
    model = recgpt(time=["gap", "hour", "week", "absolute"]).model.eval()
    window = events(6)
    changes: dict[str, float | int] = {"o.click": 1.0, "o.seconds": 77.0, "c.device": 12345, "c.volume": -9.0}
    columns = {name: column.copy() for name, column in window.columns().items()}
    columns["o.click"][3] = 0.0
    before = Events.from_columns(columns, window.profile)
    for name, value in changes.items():
        changed = {key: column.copy() for key, column in before.columns().items()}
        changed[name][3] = value
        after = Events.from_columns(changed, window.profile)
        with torch.no_grad():
            hidden = [model(collate([each], items()))[0] for each in (before, after)]
        moved = (hidden[0] - hidden[1]).abs().amax(-1)
        assert moved[:4].max() == 0, name
        assert moved[4] > 1e-5, name


@pytest.mark.parametrize(("repeats", "low", "high"), [(True, 0.0, 0.4), (False, 0.66, 0.75)])
def test_a_habit_is_learned_and_a_coin_is_not(repeats: bool, low: float, high: float) -> None:
    """Outcomes that repeat the event before them are learned; coins cost log 2 = .693, or there would be a leak."""
    rng = np.random.default_rng(0)
    model = recgpt(dropout=0.0, layers=1).model.train()
    torch.manual_seed(0)
    losses = AuxiliaryLosses(AuxiliaryConfig(outcomes=1.0), schema(outcomes={"click": "binary"}), 16)
    optimizer = torch.optim.Adam([*model.parameters(), *losses.parameters()], 0.02)
    example = collate([events(8, seed) for seed in range(16)], items())
    example = replace(example, skip=torch.ones(16, dtype=torch.int64))  # the first of a habit cannot be told
    late = []
    for step in range(60):
        click = torch.from_numpy(rng.integers(0, 2, (16, 1 if repeats else 8))).float().expand(16, 8)
        example = replace(example, outcomes=example.outcomes | {"click": click})
        loss = losses.weighted(losses(model(example), example))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        late += [loss.item()] if step >= 45 else []
    assert low < np.mean(late) < high


@pytest.mark.parametrize(
    ("time", "cycle", "learned"),
    [(["hour"], DAY, True), (["week"], WEEK, True), (["absolute"], DAY, True), (["gap"], DAY, False)],
)
def test_what_follows_the_clock_is_learned_from_it(time: list[str], cycle: int, learned: bool) -> None:
    """The next click happens if this event lies in the first half of a day or week; gaps, all alike, do not tell."""
    rng = np.random.default_rng(0)
    model = recgpt(dropout=0.0, layers=1, time=time).model.train()
    torch.manual_seed(0)
    losses = AuxiliaryLosses(AuxiliaryConfig(outcomes=1.0), schema(outcomes={"click": "binary"}), 16)
    optimizer = torch.optim.Adam([*model.parameters(), *losses.parameters()], 0.02)
    example = collate([events(8, seed) for seed in range(16)], items())
    example = replace(example, skip=torch.ones(16, dtype=torch.int64))
    late = []
    for step in range(60):
        moment = 2500 * WEEK + np.arange(8) * (9 * cycle // 2) + rng.integers(0, cycle, (16, 8))
        click = np.concatenate((np.zeros((16, 1)), moment[:, :-1] % cycle < cycle // 2), 1)
        gap = np.stack([gap_buckets(row) for row in moment])
        example = replace(
            example,
            outcomes=example.outcomes | {"click": torch.from_numpy(click).float()},
            time=torch.from_numpy(moment),
            gap=torch.from_numpy(gap),
        )
        loss = losses.weighted(losses(model(example), example))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        late += [loss.item()] if step >= 45 else []
    assert np.mean(late) < 0.4 if learned else np.mean(late) > 0.6


def test_off_is_off_and_what_is_missing_is_told() -> None:
    assert not AuxiliaryConfig().active
    assert AuxiliaryConfig(time=0.1).active
    assert not list(AuxiliaryLosses(AuxiliaryConfig(), schema(), 16).parameters())
    bare = schema(outcomes={}, context={}, content_dim=None, time=None, has_time=False)
    for name, remedy in (("outcomes", "data.outcomes"), ("context", "data.context"), ("content", ".* data.items")):
        with pytest.raises(ConfigError, match=rf"loss.auxiliary.{name}: 0.5, .* has no {name}.*; declare {remedy}"):
            AuxiliaryLosses(AuxiliaryConfig.model_validate({name: 0.5}), bare, 16)
    with pytest.raises(ConfigError, match="declare data.time"):
        AuxiliaryLosses(AuxiliaryConfig(time=1), bare, 16)
    with pytest.raises(ConfigError, match="time_targets: a part stands twice"):
        load_config(AuxiliaryConfig, {"time_targets": ["gap", "gap"]})


def test_bfloat16_products_stay_near() -> None:
    losses, example = built(), batch()
    hidden = torch.randn(3, 10, 16)
    exact, rough = losses(hidden, example), losses(hidden, example, torch.bfloat16)
    for name in ("content", "context.device"):
        assert rough[name].item() == pytest.approx(exact[name].item(), rel=0.02)
        assert rough[name].item() != exact[name].item()

"""Contract of every part of an event's time, cycles that close, and the model's two paths with all of them."""

import math
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from recgpt.api import RecGPT
from recgpt.config import load_config
from recgpt.data.batch import collate
from recgpt.data.events import NO_TIME
from recgpt.errors import ConfigError
from recgpt.model import EventModel, ModelConfig
from recgpt.nn.time import DAY, HOUR, TIME_EMBEDDINGS, WEEK, AbsoluteTime, CyclicTime, TimeEmbedding, phase
from tests.recgpt.builders import columns, cut, events, items, recgpt, schema

NOON = int(datetime(2024, 2, 29, 12, tzinfo=UTC).timestamp()) * 10**6
ALL = ["gap", "hour", "week", "absolute"]


@pytest.fixture(params=sorted(TIME_EMBEDDINGS))
def part(request: pytest.FixtureRequest) -> str:
    return request.param


def test_contract_shape_unknown_and_gradient(part: str) -> None:
    torch.manual_seed(0)
    embed = TimeEmbedding([part], 8)
    time = torch.tensor([[NOON, NO_TIME], [NOON + HOUR // 3, NOON]])
    gap = torch.tensor([[3, 0], [9, 3]])
    vectors = embed(time, gap)
    assert vectors.shape == (2, 2, 8)
    assert vectors[0, 1].abs().max() == 0
    assert torch.allclose(vectors[0, 0], vectors[1, 1], atol=1e-7)
    assert (vectors[0, 0] - vectors[1, 0]).abs().max() > 1e-4
    embed(torch.full((3,), NO_TIME), torch.zeros(3, dtype=torch.int64)).sum().backward()
    assert all(p.grad is None or p.grad.abs().max() == 0 for p in embed.parameters())


def test_contract_the_whole_clock_is_finite(part: str) -> None:
    time = torch.tensor([0, 1, NOON, 4_102_444_799_999_999])  # 1970 to 2099
    assert TimeEmbedding([part], 8)(time, torch.tensor([0, 1, 20, 33])).isfinite().all()


def test_contract_scale_at_the_start(part: str) -> None:
    torch.manual_seed(0)
    time = NOON + torch.arange(200) * 7_919_000_003
    vectors = TimeEmbedding([part], 512, 0.05)(time, 1 + torch.arange(200) % 33)
    assert vectors.std().item() == pytest.approx(0.05, rel=0.1)


def test_parts_add_up() -> None:
    embed = TimeEmbedding(ALL, 8)
    time, gap = torch.tensor([NOON, NO_TIME]), torch.tensor([4, 0])
    total = sum(embed[name](gap if name == "gap" else time) for name in ALL)
    assert torch.allclose(embed(time, gap), total)


@pytest.mark.parametrize(("name", "period"), [("hour", timedelta(days=1)), ("week", timedelta(days=7))])
def test_cycles_close(name: str, period: timedelta) -> None:
    torch.manual_seed(0)
    embed = TIME_EMBEDDINGS[name](64, 0.02)
    length = int(period.total_seconds()) * 10**6
    time = torch.arange(0, length, length // 50) + NOON
    vectors = embed(time)
    assert torch.allclose(embed(time + 52 * length), vectors, atol=1e-6)
    last = embed(torch.tensor([NOON + length - 1]))
    assert (last - vectors[0]).abs().max() < 1e-5  # the end meets the beginning
    opposite = (vectors[25] - vectors[0]).norm()
    assert opposite > 2 * (vectors[1] - vectors[0]).norm()


def test_hour_and_week_by_hand() -> None:
    """Noon is half a day; Thursday noon, 29 February 2024, is half a day into a week that began as 1970 did."""
    assert phase(torch.tensor(NOON), DAY).item() == pytest.approx(math.pi)
    assert phase(torch.tensor(NOON), WEEK).item() == pytest.approx(2 * math.pi * 0.5 / 7)
    embed = CyclicTime(DAY, 2, 4)
    with torch.no_grad():
        embed.linear.weight.copy_(torch.eye(4))
    at_three = embed(torch.tensor([NOON - 9 * HOUR]))  # an eighth of the day
    assert torch.allclose(at_three, torch.tensor([[math.sqrt(0.5), 0.0, math.sqrt(0.5), 1.0]]), atol=1e-6)


def test_a_time_zone_is_linear_in_the_waves() -> None:
    """Sine and cosine at local time are a rotation of those in UTC, so that no offset is needed."""
    time = NOON + torch.arange(97) * 1_234_567_891
    embed = CyclicTime(DAY, 3, 6)
    with torch.no_grad():
        embed.linear.weight.copy_(torch.eye(6))
    utc, local = embed(time).double(), embed(time + 11 * HOUR // 2).double()
    rotation = torch.linalg.lstsq(utc, local).solution
    assert torch.allclose(utc @ rotation, local, atol=1e-5)


def test_absolute_by_hand() -> None:
    embed = AbsoluteTime(25)
    with torch.no_grad():
        embed.linear.weight.copy_(torch.eye(25))
        embed.cos_phase.fill_(math.pi / 2)
    forty_years = 40 * 365 * DAY
    vector = embed(torch.tensor([forty_years + HOUR // 16]))[0]  # a quarter of the shortest period
    assert vector[0].item() == pytest.approx(-1, abs=1e-6)  # cos(pi / 2 + pi / 2)
    assert vector[12].item() == pytest.approx(1, abs=1e-6)  # sin(pi / 2)
    assert vector[24].item() == pytest.approx(0, abs=1e-6)
    assert embed(torch.tensor([2 * forty_years]))[0, 24].item() == pytest.approx(math.log(2))


def test_periods_are_a_quarter_of_an_hour_to_a_year() -> None:
    periods = AbsoluteTime(4).periods
    assert periods[0] == 900 * 10**6
    assert periods[-1] == 365 * 86_400 * 10**6
    assert list(periods) == sorted(set(periods))


def test_chunk_path_equals_padded_path_with_every_part() -> None:
    model = recgpt(time=ALL, numeric="numerals")
    table = columns(13)
    table["time"][4] = None
    table["time"][5] = None
    whole = model.encode(table)
    grown = model.encode(cut(table, 0, 5))
    for at in range(5, 13):
        grown = model.append(grown, cut(table, at, at + 1))
    assert torch.equal(whole.embedding, grown.embedding)
    assert torch.equal(whole.hidden, grown.hidden)
    padded = model.encode_many([table, cut(table, 0, 3)])[0]
    assert torch.allclose(padded.hidden, whole.hidden, atol=1e-5)


def test_a_model_folder_keeps_its_parts(tmp_path: Path) -> None:
    model = recgpt(time=["week", "absolute"], numeric="buckets")
    model.save_pretrained(tmp_path)
    again = RecGPT.from_pretrained(tmp_path)
    assert again.config.time == ["week", "absolute"]
    table = columns(9)
    assert torch.equal(model.encode(table).hidden, again.encode(table).hidden)


@pytest.mark.parametrize("name", ["hour", "week", "absolute"])
def test_a_part_enters_the_model(name: str) -> None:
    """With the gaps as they are, moving all events by five hours moves hidden vectors only where the part is on."""
    window = events(6)
    moved = type(window).from_columns(window.columns() | {"time": window.time + 5 * HOUR}, window.profile)
    for time, moves in (([name], True), (["gap"], False)):
        model = recgpt(time=time).model.eval()
        with torch.no_grad():
            difference = (model(collate([window], items())) - model(collate([moved], items()))).abs().amax(-1)[0]
        assert (difference[1:] > 1e-6).all().item() is moves
        assert difference[0] == 0


def test_time_needs_a_clock_and_each_part_once() -> None:
    without = schema(time=None, has_time=False)
    assert EventModel(ModelConfig(dim=8, heads=1), without).encoder.time is None
    with pytest.raises(ConfigError, match=r"model.time: hour, but the log has no clock"):
        EventModel(ModelConfig(dim=8, heads=1, time=["gap", "hour"]), without)
    with pytest.raises(ConfigError, match="time: a part stands twice"):
        load_config(ModelConfig, {"time": ["gap", "gap"]})
    assert EventModel(ModelConfig(dim=8, heads=1, time=[]), schema()).encoder.time is None

"""Posted values: what is refused, where, and that the rest reads as the library reads a table of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from recgpt.data.events import NO_TIME
from recgpt.data.schema import DataSchema
from recgpt.serve.bodies import HistoryEvent
from recgpt.serve.problems import Refused
from recgpt.serve.reading import Event, read_event, read_history, read_time, read_values, to_events
from tests.recgpt.builders import columns, recgpt, schema
from tests.serve.posts import TIME, bodies


def field_of(error: pytest.ExceptionInfo[Refused]) -> Any:
    return error.value.body["error"]["field"]


@pytest.mark.parametrize("seed", range(3))
def test_posted_events_read_as_the_library_reads_them(seed: int) -> None:
    table = columns(50, seed)
    read = read_history([HistoryEvent.model_validate(body) for body in bodies(table)], schema())
    ours, theirs = to_events(read, schema()).columns(), recgpt().events(table).columns()
    assert list(ours) == list(theirs)
    for name, column in theirs.items():
        np.testing.assert_array_equal(ours[name], column, err_msg=name)
        assert ours[name].dtype == column.dtype


def test_ids_and_truth_values_read_as_the_library_reads_them() -> None:
    """Text and integer ids mixed, booleans, the limits of 64 bits; a table cannot mix them, so one row at a time."""
    rows = [
        {"item": "7", "device": True, "volume": True, "click": True},
        {"item": 7, "device": 1, "volume": 1, "click": 1},
        {"item": -(2**63), "device": "", "volume": 3.4e38, "click": 0.0},
        {"item": 2**63 - 1, "device": "fön", "volume": -1e-50, "click": None},
    ]
    for row in rows:
        body = {
            "item": row["item"],
            "time": TIME,
            "context": {"device": row["device"], "volume": row["volume"]},
            "outcomes": {"click": row["click"]},
        }
        [read] = read_history([HistoryEvent.model_validate(body)], schema())
        theirs = recgpt().events({name: [value] for name, value in row.items()} | {"time": [TIME]})
        for name, column in theirs.columns().items():
            np.testing.assert_array_equal(to_events([read], schema()).columns()[name], column, err_msg=name)


@pytest.mark.parametrize(
    ("values", "field", "told"),
    [
        ({"devise": "phone"}, "x.devise", "did you mean 'device'"),
        ({"device": 1.5}, "x.device", "1.5 is no category"),
        ({"device": 2**63}, "x.device", "is no category"),
        ({"device": ["phone"]}, "x.device", "a list is no category"),
        ({"device": "a\x00b"}, "x.device", "is no category"),
        ({"volume": "loud"}, "x.volume", "'loud' is text"),
        ({"volume": float("inf")}, "x.volume", "not finite"),
        ({"volume": 10**400}, "x.volume", "not finite"),
        ({"click": 2}, "x.click", "2 is not 0 or 1"),
        ({"click": 0.5}, "x.click", "not 0 or 1"),
        ({"seconds": -1}, "x.seconds", "negative watch time"),
    ],
)
def test_values_are_held_to_their_kinds(values: dict[str, Any], field: str, told: str) -> None:
    log = schema()
    with pytest.raises(Refused, match=told) as error:
        read_values(values, {**log.context, **log.outcomes}, "x")
    assert (error.value.status, field_of(error)) == (422, field)


@pytest.mark.parametrize(
    ("value", "unit", "expected"),
    [
        (1_600_000_000, "s", 1_600_000_000_000_000),
        (1_600_000_000_123, "ms", 1_600_000_000_123_000),
        (1_600_000_000_123_456_789, "ns", 1_600_000_000_123_456),
        ("2022-04-28", "s", 1_651_104_000_000_000),
        ("2022-04-28T02:00:00+02:00", "ms", 1_651_104_000_000_000),
        ("2022-04-28T00:00:00.000001Z", "s", 1_651_104_000_000_001),
        (0, "s", 0),
    ],
)
def test_times_by_hand(value: Any, unit: str, expected: int) -> None:
    assert read_time(value, unit, "t") == expected


@pytest.mark.parametrize(
    "value", [-1, 4_102_444_800, 10**30, 10**400, True, 1.5, "", "tomorrow", "1600000000", "0001-01-01T00:00+23:59", []]
)
def test_no_times(value: Any) -> None:
    with pytest.raises(Refused, match="give an integer in s or ISO text") as error:
        read_time(value, "s", "events[0].time")
    assert field_of(error) == "events[0].time"


def test_a_log_with_a_clock_asks_for_a_time() -> None:
    with pytest.raises(Refused, match="missing; give an integer in s") as error:
        read_history([HistoryEvent(item=1)], schema())
    assert field_of(error) == "history[0].time"
    with pytest.raises(Refused, match="missing"):
        read_event(HistoryEvent(item=1, time=None), schema(), "events[0]")
    # A history is in order already, so it may say that a time is unknown, as a log may.
    [unknown] = read_history([HistoryEvent(item=1, time=None)], schema())
    assert to_events([unknown], schema()).time.tolist() == [NO_TIME]
    clockless = schema(time=None, has_time=False)
    [event] = read_history([HistoryEvent(item=1)], clockless)
    assert event.time is None
    [timed] = read_history([HistoryEvent(item=1, time=TIME)], clockless)
    assert to_events([timed], clockless).time.tolist() == [NO_TIME]


def test_a_history_goes_forward() -> None:
    times = [TIME, None, TIME, TIME - 1]
    with pytest.raises(Refused, match="oldest first") as error:
        read_history([HistoryEvent(item=1, time=time) for time in times], schema())
    assert field_of(error) == "history[3].time"


def test_values_kept_for_another_schema_count_as_unknown(caplog: pytest.LogCaptureFixture) -> None:
    """The store may be older than the model: a column has gone, another is new, a third has changed its kind."""
    old = Event(1, TIME * 10**6, {"device": 2.5, "gone": 3}, {"click": "yes", "seconds": 4})
    read = to_events([old], DataSchema.model_validate(schema().model_dump() | {"context": {"device": "categorical"}}))
    assert {name: column.tolist() for name, column in read.context.items()} == {"device": [0]}
    assert np.isnan(read.outcomes["click"][0])
    assert read.outcomes["seconds"].tolist() == [4]
    assert "some values of device" in caplog.text
    assert "some values of click" in caplog.text

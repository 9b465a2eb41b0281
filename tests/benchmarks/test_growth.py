"""How speed and memory grow: what is measured, and the picture of it."""

from __future__ import annotations

import json

import pytest

from benchmarks import growth


def test_one_thing_grows_at_a_time() -> None:
    shapes = growth.shapes()
    assert len(shapes) == sum(len(values) for values in growth.GROWN.values()) - 2  # the base stands in each
    assert all(sum(shape[name] != growth.BASE[name] for name in shape) <= 1 for shape in shapes)


def test_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(growth, "EVENTS", 2000)
    found = growth.measure(length=20, items=50, batch=200, seconds=0.01)
    assert found["items"] == 50
    assert found["events_per_second"] > 0
    assert found["peak_mib"] >= 0  # what other tests took is not given back


def test_the_picture_shows_what_was_measured() -> None:
    value = {"events_per_second": 1234.0, "peak_mib": 512.0, "items": 10}
    text = growth.picture({json.dumps(growth.BASE): value})
    assert text.startswith("<?xml")
    for label in (*growth.LABELS.values(), "12.8k", "10M", "events per second", "peak memory (GiB)"):
        assert f">{label}<" in text
    assert [growth.short(n) for n in (50, 1600, 10**7)] == ["50", "1.6k", "10M"]

"""Sort keys made short, and back."""

from __future__ import annotations

import ibis
import numpy as np
import pyarrow as pa
import pytest

from recgpt.data.keys import Range, ScatteredIds, ShortNumbers

INT64 = np.iinfo(np.int64)


@pytest.mark.parametrize("least", [0, -5, INT64.min, INT64.max - 2**31 + 1])
def test_numbers_keep_their_order_and_come_back(least: int) -> None:
    values = [least + 2**31 - 1, None, least, least + 17]
    found = Range(least, least + 2**31 - 1)
    short = ShortNumbers.of(found)
    assert short is not None
    table = ibis.memtable(pa.table({"x": pa.array(values, pa.int64())}))
    keys = table.select(key=short.short(table.x)).to_pyarrow()["key"]
    assert keys.type == pa.int32()
    assert keys.to_pylist() == [2**31 - 1, None, 0, 17]
    assert short.back(keys).to_pylist() == values


def test_the_clock_comes_back_in_microseconds() -> None:
    short = ShortNumbers.of(Range(1_600_000_000, 1_700_000_000), 10**6)
    assert short is not None
    assert short.back(pa.chunked_array([pa.array([5, None], pa.int32())])).to_pylist() == [1_600_000_005_000_000, None]


@pytest.mark.parametrize(
    ("least", "most", "fits"), [(0, 2**31 - 1, True), (0, 2**31, False), (INT64.min, INT64.max, False)]
)
def test_what_fits(least: int, most: int, fits: bool) -> None:
    assert (ShortNumbers.of(Range(least, most)) is not None) == fits
    assert (ScatteredIds.of(Range(least, most)) is not None) == fits
    assert ShortNumbers.of(None) is ScatteredIds.of(None) is None


@pytest.mark.parametrize("least", [0, -5, INT64.min, INT64.max - 2**31 + 1])
@pytest.mark.parametrize("difference", [0, 1, 2, 1000, 2**31 - 1])
def test_scattered_ids_are_distinct_and_come_back(least: int, difference: int) -> None:
    scattered = ScatteredIds.of(Range(least, least + difference))
    assert scattered is not None
    rng = np.random.default_rng(0)
    ids = np.unique([0, difference, *rng.integers(0, difference, 500, endpoint=True)]) + least
    table = ibis.memtable(pa.table({"x": ids}))
    keys = table.select(key=scattered.short(table.x)).to_pyarrow()["key"]
    assert keys.type == pa.int32()
    assert len(set(keys.to_pylist())) == len(ids)
    assert min(keys.to_pylist()) >= 0
    np.testing.assert_array_equal(scattered.back(keys.to_numpy()), ids)


def test_neighbouring_ids_lie_far_apart() -> None:
    scattered = ScatteredIds.of(Range(0, 99_999))
    assert scattered is not None
    size = 1 << scattered.bits
    keys = np.array([number * 1_640_531_527 % size for number in range(100_000)])  # by Python's integers
    np.testing.assert_array_equal(scattered.back(keys.astype(np.int32)), np.arange(100_000))
    counts = np.histogram(keys, 256, (0, size))[0]
    assert counts.min() > 0.95 * counts.mean()
    assert counts.max() < 1.05 * counts.mean()

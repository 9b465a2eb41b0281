"""Which column is what: by names, by values, and where nothing tells."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from recgpt.init.guess import guess_roles
from recgpt.init.roles import Roles
from recgpt.init.sample import Sample, read_sample
from recgpt.init.values import Values, guess_values
from tests.recgpt.init.logs import Row, visits, write

NAMES = ["user", "item", "time", "click", "device", "price"]


def guessed(folder: Path, header: Sequence[str] | None, rows: list[Row]) -> tuple[Sample, Roles, Values]:
    sample = read_sample([write(folder / "log.csv", header, rows)], "LOG")
    roles = guess_roles(sample)
    return sample, roles, guess_values(sample, roles)


def columns_of(table: dict[str, Any], folder: Path) -> tuple[Roles, Values]:
    pq.write_table(pa.table(table), folder / "log.parquet")
    sample = read_sample([folder / "log.parquet"], "LOG")
    roles = guess_roles(sample)
    return roles, guess_values(sample, roles)


# -- user and item -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_time", [False, True])
def test_names_that_tell_leave_no_doubt(tmp_path: Path, by_time: bool) -> None:
    _, roles, values = guessed(tmp_path, NAMES, visits(by_time=by_time))
    assert (roles.user, roles.item, roles.time, roles.unit, roles.order) == ("user", "item", "time", "s", None)
    assert (roles.checks, roles.candidates, roles.where) == ({}, {}, None)
    assert values.active(values.outcomes) == {"click": "binary"}
    assert values.active(values.context) == {"device": "categorical"}
    assert list(values.rest) == ["price"]


def test_values_alone_of_a_log_sorted_by_user(tmp_path: Path) -> None:
    _, roles, _ = guessed(tmp_path, list("abcdef"), visits())
    assert (roles.user, roles.item, roles.time) == ("a", "b", "c")
    assert set(roles.checks) == {"user", "item", "time"}


def test_values_alone_of_a_log_sorted_by_time_are_not_enough(tmp_path: Path) -> None:
    """25 and 60 distinct integers, each as good a user as an item: ask, do not guess."""
    _, roles, values = guessed(tmp_path, list("abcdef"), visits(by_time=True))
    assert (roles.user, roles.item, roles.time) == (None, None, "c")
    assert roles.candidates == {"user": ["b", "a"], "item": ["b", "a"]}
    assert values.rest["a"].endswith("a candidate, see above")


def test_an_item_beside_a_known_user(tmp_path: Path) -> None:
    _, roles, _ = guessed(tmp_path, ["user", "thing", "time", "f", "g", "h"], visits(by_time=True))
    assert (roles.user, roles.item) == ("user", "thing")
    assert "its name says nothing" in roles.checks["item"]


def test_floating_point_ids_are_no_ids(tmp_path: Path) -> None:
    rows = [[float(row[0]), *row[1:]] for row in visits()]
    _, roles, values = guessed(tmp_path, ["user_id", *NAMES[1:]], rows)
    assert roles.user is None
    assert "floating point" in values.rest["user_id"]
    table = {"user_id": [1.0, 2.0, None] * 9, "item": list(range(27)), "ts": [1_650_000_000 + n for n in range(27)]}
    roles, values = columns_of(table, tmp_path)
    assert roles.user is None
    assert "floating point" in values.rest["user_id"]


def test_two_that_could_be_it_are_told(tmp_path: Path) -> None:
    rows = [[*row, row[0] // 2, row[1] // 2] for row in visits()]
    _, roles, _ = guessed(tmp_path, [*NAMES, "customer_id", "video_id"], rows)
    assert (roles.user, roles.item) == ("user", "item")
    assert roles.checks == {"user": "or customer_id?", "item": "or video_id?"}


def test_a_user_in_every_row_is_told(tmp_path: Path) -> None:
    _, roles, _ = guessed(tmp_path, NAMES, [[place, *row[1:]] for place, row in enumerate(visits())])
    assert "no histories" in roles.checks["user"]


# -- clock and order ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("factor", "unit"), [(1, "s"), (10**3, "ms"), (10**6, "us"), (10**9, "ns")])
def test_units_of_the_clock(tmp_path: Path, factor: int, unit: str) -> None:
    rows = [[*row[:2], row[2] * factor, *row[3:]] for row in visits()]
    _, roles, _ = guessed(tmp_path, NAMES, rows)
    assert (roles.time, roles.unit) == ("time", unit)
    assert roles.notes["time"].startswith("2022-04-1")


def test_numbers_that_are_no_moments_only_order(tmp_path: Path) -> None:
    rows = [[*row[:2], row[2] - 1_650_000_000, *row[3:]] for row in visits()]
    _, roles, _ = guessed(tmp_path, NAMES, rows)
    assert (roles.time, roles.order) == (None, "time")
    assert "it only orders" in roles.checks["order"]


def test_a_clock_that_is_not_the_events(tmp_path: Path) -> None:
    """When an item was uploaded is one value per item, whatever its name."""
    rows = [[*row[:2], *row[3:], 1_600_000_000 + row[1] * 86_400, row[2]] for row in visits()]
    _, roles, values = guessed(tmp_path, ["user", "item", "click", "device", "price", "date", "when"], rows)
    assert roles.time == "when"
    assert "one value per item" in values.rest["date"]
    _, roles, _ = guessed(tmp_path, ["user", "item", "click", "device", "price", "x", "upload_time"], rows)
    assert roles.time is None


def numbered(rows: list[Row]) -> list[Row]:
    """Each row with the number of the user's event at its end."""
    seen: dict[int, int] = {}
    for row in rows:
        seen[row[0]] = seen.get(row[0], -1) + 1
        row.append(seen[row[0]])
    return rows


def test_a_column_that_numbers_the_events_orders_them(tmp_path: Path) -> None:
    _, roles, _ = guessed(tmp_path, [*NAMES, "pos"], numbered(visits(by_time=True)))
    assert (roles.time, roles.order, roles.checks) == ("time", "pos", {})


def test_a_position_against_the_clock_is_no_order(tmp_path: Path) -> None:
    rows = [[*row[:-1], -row[-1]] for row in numbered(visits())]
    _, roles, values = guessed(tmp_path, [*NAMES, "pos"], rows)
    assert roles.order is None
    assert "the time runs backwards along it in 100%" in values.rest["pos"]


def test_a_position_on_the_page_is_no_order(tmp_path: Path) -> None:
    rows = [[*row, row[1] % 5] for row in visits()]
    _, roles, _ = guessed(tmp_path, [*NAMES, "position"], rows)
    assert roles.order is None


def test_ties_ask_for_an_order(tmp_path: Path) -> None:
    rows = [[*row[:2], row[2] // 86_400 * 86_400, *row[3:]] for row in visits()]
    _, roles, _ = guessed(tmp_path, NAMES, rows)
    assert roles.order is None
    assert "share their time: name a column that orders them" in roles.checks["order"]
    _, roles, _ = guessed(tmp_path, [*NAMES, "zz"], numbered(rows))  # by its values, whatever its name
    assert roles.order == "zz"


def test_a_clock_with_holes_needs_an_order(tmp_path: Path) -> None:
    holes = [[*row[:2], "" if n % 3 else row[2], *row[3:]] for n, row in enumerate(visits())]
    _, roles, _ = guessed(tmp_path, NAMES, holes)
    assert (roles.time, roles.order) == ("time", "row")  # the known times run with the file
    shuffled = sorted(holes, key=lambda row: (row[1], row[5]))
    _, roles, _ = guessed(tmp_path, NAMES, shuffled)
    assert (roles.time, roles.order, roles.where) == ("time", None, '"time" IS NOT NULL')


def test_no_clock_in_one_file_and_in_several(tmp_path: Path) -> None:
    rows = [[row[0], row[1]] for row in visits()]
    _, roles, _ = guessed(tmp_path, ["user", "item"], rows)
    assert roles.order == "row"
    files = [write(tmp_path / f"{n}.csv", ["user", "item"], rows) for n in range(2)]
    roles = guess_roles(read_sample(files, "LOG"))
    assert roles.order == "EDIT_ORDER"
    assert roles.candidates["order"] == []


def test_days_as_numbers_and_dates_as_text_are_no_clock(tmp_path: Path) -> None:
    rows = [[*row[:2], 20220401 + n % 20, *row[3:]] for n, row in enumerate(visits())]
    _, roles, values = guessed(tmp_path, ["user", "item", "dt", "click", "device", "price"], rows)
    assert roles.time is None
    assert "days written as numbers" in values.rest["dt"]
    table = {
        "user": [1, 2] * 15,
        "item": list(range(30)),
        "created": ["2024-05-01T10:00:00"] * 15 + ["2024-05-02"] * 15,
    }
    roles, _ = columns_of(table, tmp_path)
    assert (roles.time, roles.order) == (None, "row")
    assert "created holds dates as text: cast it" in roles.checks["order"]


def test_a_clock_that_cannot_be_read_is_told(tmp_path: Path) -> None:
    rows = [[*row[:2], f"{1 + n % 12}/{1 + n % 28}/2024", *row[3:]] for n, row in enumerate(visits())]
    _, roles, _ = guessed(tmp_path, NAMES, rows)
    assert roles.time is None
    assert "time is named as a clock, but holds neither numbers nor ISO dates" in roles.checks["order"]


def test_a_column_named_row_is_no_order(tmp_path: Path) -> None:
    rows = [[row[0], row[1], row[-1]] for row in numbered(visits())]
    _, roles, values = guessed(tmp_path, ["user", "item", "row"], rows)
    assert (roles.order, roles.checks["order"][:21]) == ("row", "the order of the file")
    assert "means the order of the file, not this column" in values.rest["row"]


def test_rows_without_an_id_are_left_out(tmp_path: Path) -> None:
    for text, sql in ((False, '"user" IS NOT NULL'), (True, "CAST(\"user\" AS VARCHAR) <> ''")):
        rows = [["" if n % 20 == 0 else f"u{row[0]}" if text else row[0], *row[1:]] for n, row in enumerate(visits())]
        _, roles, _ = guessed(tmp_path, NAMES, rows)
        assert roles.where == sql


# -- the others --------------------------------------------------------------------------------------------------------


def test_kinds_of_outcomes(tmp_path: Path) -> None:
    rows = [
        [*row[:4], row[3], 1 + row[1] % 5, row[5] - 10, row[5] * (1 + row[0]), "yes" if row[2] % 2 else "no"]
        for row in visits()
    ]
    header = ["user", "item", "time", "is_like", "liked", "rating", "score", "watch_seconds", "bought"]
    _, _, values = guessed(tmp_path, header, rows)
    assert values.active(values.outcomes) == {"is_like": "binary", "rating": "regression", "score": "regression"}
    assert values.outcomes["liked"].note == "the same as is_like"
    assert (values.outcomes["watch_seconds"].kind, values.outcomes["watch_seconds"].active) == ("watch_time", False)
    assert "never a context" in values.outcomes["watch_seconds"].note
    assert "must be written as 0 and 1" in values.rest["bought"]


def test_time_spent_alone_is_an_outcome(tmp_path: Path) -> None:
    rows = [[*row[:3], row[5]] for row in visits()]
    _, _, values = guessed(tmp_path, ["user", "item", "time", "dwell_ms"], rows)
    assert values.active(values.outcomes) == {"dwell_ms": "watch_time"}


def test_what_tells_an_outcome_is_no_context(tmp_path: Path) -> None:
    """The device here is all but the click; so is a number without a telling name."""
    rows = [[*row[:4], ["none", "phone"][row[3]], row[3] * 5 + row[5] / 100] for row in visits(users=60)]
    _, _, values = guessed(tmp_path, [*NAMES[:5], "x"], rows)
    assert values.active(values.context) == {}
    assert "it tells click (AUC 1.00 alone)" in values.context["device"].note
    assert "never a context" in values.rest["x"]


def test_nan_keeps_an_outcome_out(tmp_path: Path) -> None:
    table = {
        "user": [1, 2] * 20,
        "item": list(range(40)),
        "ts": [1_650_000_000 + n for n in range(40)],
        "rating": [1.0, 2.0, 3.0, float("nan")] * 10,
    }
    _, values = columns_of(table, tmp_path)
    assert values.active(values.outcomes) == {}
    assert "25.0% NaN" in values.outcomes["rating"].note


def test_what_belongs_into_side_tables(tmp_path: Path) -> None:
    rows = [[*row[:3], f"brand {row[1] % 7}", row[0] % 3, f"s{row[2] // 9000}", 7] for row in visits()]
    _, _, values = guessed(tmp_path, ["user", "item", "time", "brand", "country", "session", "c"], rows)
    assert "one value per item: belongs into a table of the items" in values.rest["brand"]
    assert "a session" in values.rest["session"]
    assert values.rest["c"] == "integer, always 7"


def test_a_column_that_names_the_parts(tmp_path: Path) -> None:
    for words, parts in (
        (("train", "val", "test"), {"train": ["train"], "valid": ["val"], "test": ["test"]}),
        (("history", "train", "test"), {"train": ["history", "train"], "valid": [], "test": ["test"]}),
    ):
        rows = [[*row[:3], words[0 if n % 9 > 1 else n % 9 + 1]] for n, row in enumerate(visits())]
        _, _, values = guessed(tmp_path, ["user", "item", "time", "part"], rows)
        assert values.part is not None
        assert values.part[0] == "part"
        assert {part: sorted(map(str, found)) for part, found in values.part[1].items()} == parts


def test_no_examples_of_values_that_may_be_personal(tmp_path: Path) -> None:
    rows = [[*row[:3], f"person{n}@example.org"] for n, row in enumerate(visits())]
    _, _, values = guessed(tmp_path, ["user", "item", "time", "mail"], rows)
    assert "@" not in values.rest["mail"]
    assert "distinct" in values.rest["mail"]

"""Charts: bare SVG that takes its colours from the page and shares no id with another."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import pytest

from recgpt.report.charts import Axes, Line, draw, log_ticks, tick

LINES = [
    Line("model", [1, 10, 100], [0.1, 0.2, 0.4], [0.05, 0.1, 0.3], [0.2, 0.3, 0.5]),
    Line("second", [1, 10, 100], [0.2, 0.2, 0.2], [0.1, 0.1, 0.1], [0.3, 0.3, 0.3], dots=True),
]


def test_a_chart_is_bare_well_formed_svg() -> None:
    svg = draw("one", 'a <label> & "more"', Axes("k", x_log=True), LINES)
    root = ElementTree.fromstring(svg)
    assert root.attrib == {"viewBox": "0 0 380 240", "role": "img", "aria-label": 'a <label> & "more"'}
    for foreign in ("http", "<style", "<metadata", "font-family", "#fe0", "xmlns", "<!--"):
        assert foreign not in svg
    assert "var(--model)" in svg
    assert "var(--second)" in svg
    assert [text.text for text in root.iter("text")].count("k") == 1


def test_ids_carry_the_name_and_the_drawing_is_a_function_of_its_input() -> None:
    one, two = (draw(name, "", Axes("k"), LINES) for name in ("one", "two"))
    ids = re.findall(r' id="([^"]+)"', one)
    assert ids
    assert all(name.startswith("one-") for name in ids)
    assert not set(ids) & set(re.findall(r' id="([^"]+)"', two))
    assert one == draw("one", "", Axes("k"), LINES)


def test_numbers_on_the_axis_are_not_cut_to_two_decimals() -> None:
    svg = draw("small", "", Axes("step"), [Line("model", [0, 1], [0.0, 0.0031])])
    shown = [text.text for text in ElementTree.fromstring(svg).iter("text")]
    assert "0.001" in shown
    assert "0.003" in shown


def test_an_axis_of_whole_numbers_has_no_halves() -> None:
    svg = draw("whole", "", Axes("number", x_whole=True), [Line("model", list(range(1, 17)), [0.5] * 16)])
    shown = [text.text for text in ElementTree.fromstring(svg).iter("text")]
    above_one = [text for text in shown if text and text[0].isdigit() and float(text) > 1]
    assert len(above_one) >= 3
    assert all(text.isdigit() for text in above_one)


def test_what_is_unknown_is_left_out() -> None:
    nan = float("nan")
    svg = draw(
        "gap", "", Axes("k", ticks=((0, "a\nn 1"), (1, "b\nn 2"))), [Line("model", [0, 1], [nan, 0.5], dots=True)]
    )
    assert len(re.findall(r"<use [^>]*fill: var\(--model\)", svg)) == 1
    assert draw("empty", "", Axes("x", x_log=True, y_log=True, diagonal=True), [Line("model", [], [], [], [], True)])


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.25, "0.25"),
        (9999, "9999"),
        (20_000, "20k"),
        (1_000_000, "1M"),
        (2.5e6, "2.5M"),
        (1e-5, "1e−5"),
        (-2, "−2"),
    ],
)
def test_ticks_are_short(value: float, text: str) -> None:
    assert tick(value) == text


def test_log_ticks_are_few() -> None:
    assert log_ticks(1, 10) == pytest.approx([1, 2, 5, 10])
    assert log_ticks(18, 55) == pytest.approx([20, 30, 40, 50])  # less than a decade: not 20 and 50 alone
    assert log_ticks(0.9, 110) == pytest.approx([1, 3, 10, 30, 100])
    assert log_ticks(1, 1e5) == pytest.approx([1, 10, 100, 1e3, 1e4, 1e5])
    assert len(log_ticks(1e-9, 1e9)) <= 6

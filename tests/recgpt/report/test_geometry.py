"""The section of a run's inspection: what is drawn, what is left out, whose numbers they are."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from recgpt.inspection import inspect
from recgpt.inspection.run import FILE
from recgpt.report import report
from recgpt.report.attention import attention
from recgpt.report.blocks import Block, Figures, Section, Table
from recgpt.report.geometry import geometry


@pytest.fixture(scope="module")
def found(trained: Path) -> dict[str, Any]:
    told = inspect(trained / "first")
    (trained / "first" / FILE).unlink()
    return told


def titles(blocks: list[Block] | Section) -> list[str]:
    blocks = list(blocks.blocks) if isinstance(blocks, Section) else blocks
    return [figure.title for block in blocks if isinstance(block, Figures) for figure in block.figures]


def tables(section: Section) -> dict[str, Table]:
    return {block.columns[0]: block for block in section.blocks if isinstance(block, Table)}


def test_every_part_is_drawn(found: dict[str, Any]) -> None:
    drawn = titles(geometry(found))
    for title in (
        "Singular values of the id table",
        "Singular values of the vectors",
        "Other items in an item's row",
        "Length of the vectors by popularity",
        "Layer 1: attention by events back",
        "Layer 2: attention by time",
    ):
        assert title in drawn
    assert len(set(drawn)) == len(drawn)


def test_numbers_are_those_of_the_inspection(found: dict[str, Any]) -> None:
    shown = tables(geometry(found))
    [first, *_] = shown["table"].rows
    own = found["tables"][0]
    assert first[:4] == ("items.id.table", "97", str(97 - own["reached"]), "16")
    assert first[4:6] == tuple(f"{own[part]['information_abundance']:.1f}" for part in ("spectrum", "start"))
    loads = dict((row[0], row[1]) for row in shown["id table"].rows)
    assert loads["items that share all their rows with another"] == str(found["collisions"]["here"]["confused_items"])
    heads = shown["attention"].rows
    assert [row[0] for row in heads][-2:] == ["layer 2, head 2", "all alike"]


def test_a_report_shows_the_inspection_that_is_there(first: Path) -> None:
    plain = report(first).read_text()
    found = inspect(first)
    assert report(first).read_text() == plain  # computed or read, the same
    found["tables"][0]["reached"] = 97 - 13
    found["collisions"]["slots"] = 123_456
    (first / FILE).write_text(json.dumps(found))
    assert "123,456" in report(first).read_text()


def test_what_a_run_lacks_is_left_out(found: dict[str, Any]) -> None:
    flat = found | {"tables": [{"name": "items.id.memory", "rows": 9, "reached": 3, "width": 1}]}
    assert "Singular values of the id table" not in titles(geometry(flat))
    untimed = json.loads(json.dumps(found["attention"]))
    for head in [untimed["even"], *(head for layer in untimed["layers"] for head in layer)]:
        head["gap"] = [head["gap"][0], *[0] * (len(head["gap"]) - 2), sum(head["gap"][1:])]
    assert not any("by time" in title for title in titles(attention(untimed, {})))
    assert attention(None, {}) == []
    whole = geometry(found | {"collisions": found["collisions"] | {"chance": None}})
    assert all(row[2] == "\N{EN DASH}" for row in tables(whole)["id table"].rows)
    empty = geometry(found | {"items": {"all": 0, "vectors": 0}})
    assert len(empty.blocks) == 1


def test_many_layers_heads_and_tables_stay_readable(found: dict[str, Any]) -> None:
    deep = found["attention"] | {"layers": [found["attention"]["layers"][0] * 4 for _ in range(9)]}
    drawn = [title for title in titles(attention(deep, {})) if "events back" in title]
    assert drawn == [f"Layer {i}: attention by events back" for i in (1, 4, 6, 9)]
    blocks = attention(deep, {})
    [figures] = [block for block in blocks if isinstance(block, Figures)]
    assert figures.figures[0].keys[0].name == "mean of 8 heads, least to greatest"
    many = geometry(found | {"tables": found["tables"] * 9})
    assert tables(many)["table"].folded


def test_learned_biases_are_drawn(found: dict[str, Any]) -> None:
    n = len(found["attention"]["distance_from"])
    biases = {"distance": [[[0.1] * n, [0.3] * n], [[0.2] * n]], "gap": [[[0.0] * 9]]}
    drawn = titles(attention(found["attention"], biases))
    assert drawn[-2:] == ["Learned bias by events back", "Learned bias by time"]
    for normalised in (True, False):  # without a softmax the bias itself counts
        blocks = attention(found["attention"] | {"normalised": normalised}, biases)
        readings = [f.reading for block in blocks if isinstance(block, Figures) for f in block.figures]
        assert readings[-1].endswith("1 more is e times.") == normalised

"""Made-up logs for the tests of `init`."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

Row = list[Any]


def visits(seed: int = 0, users: int = 25, by_time: bool = False) -> list[Row]:
    """Rows (user, item, seconds, clicked, device, price) of a log sorted by user, or by time."""
    rng = np.random.default_rng(seed)
    rows: list[Row] = []
    for user in range(users):
        time = 1_650_000_000 + int(rng.integers(500_000))
        for _ in range(int(rng.integers(4, 22))):
            time += int(rng.integers(1, 9000))
            item = min(59, int(rng.exponential(15)))
            device = ["phone", "web"][rng.integers(2)]
            rows.append([user, item, time, int(rng.random() < 0.3), device, round(float(rng.random() * 50), 2)])
    return sorted(rows, key=lambda row: row[2]) if by_time else rows


def write(path: Path, header: Sequence[str] | None, rows: Sequence[Row], delimiter: str = ",", **how: Any) -> Path:
    """A text file; `how` is what csv.writer takes, and `bom`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    bom = how.pop("bom", False)
    with open(path, "w", newline="", encoding="utf-8-sig" if bom else "utf-8") as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator="\n", **how)
        if header is not None:
            writer.writerow(header)
        writer.writerows(rows)
    return path

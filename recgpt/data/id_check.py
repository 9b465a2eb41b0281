"""The part of `recgpt data check` about ids: how many of a log's items the id embedding would confuse."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from recgpt.config import Section, apply_overrides, read_config, validate
from recgpt.data.items import ItemTable
from recgpt.nn.ids import IdEmbeddingConfig
from recgpt.nn.ids.collisions import id_collisions
from recgpt.nn.transformer import TransformerConfig

if TYPE_CHECKING:
    from rich.table import Table


class _ModelPart(Section):
    id: IdEmbeddingConfig = IdEmbeddingConfig()
    """The item-id embedding."""
    dim: int = Field(default=TransformerConfig().dim, ge=2)
    """Width D."""


class _ModelOnly(Section):
    model: _ModelPart = _ModelPart()
    """What of the model section decides on ids."""


def id_settings(config: Any, overrides: Sequence[str]) -> tuple[IdEmbeddingConfig, int]:
    """`model.id` and `model.dim` of a config file or of nested dicts, the defaults where it names none.

    Raises:
        ConfigError: a wrong value in them.
    """
    named = isinstance(config, str | Path)
    values = apply_overrides(read_config(config) if named or isinstance(config, Mapping) else {}, overrides)
    model = values.get("model") or {}
    part = {key: model[key] for key in _ModelPart.model_fields if key in model} if isinstance(model, Mapping) else model
    known = validate(_ModelOnly, {"model": part}, str(config) if named else "config").model
    return known.id, known.dim


def check_ids(settings: tuple[IdEmbeddingConfig, int], folder: Path) -> dict[str, Any]:
    """`id_collisions` of the items with a training event in a prepared folder."""
    return id_collisions(*settings, ItemTable.read(folder / "items.parquet").trained)


def ids_table(found: Mapping[str, Any]) -> Table:
    """The collisions as a table."""
    from rich.table import Table

    rows = "a row for each id" if found["kind"] == "full" else f"rows {found['rows']:,}"
    title = f"ids in model.id ({found['kind']}, {rows}, dim {found['dim']})"
    names = ("ids", "confused, expected", "share", "confused, found", "ids a weight", "bytes")
    table = Table(*names, title=title, title_justify="left")
    for row in [found["log"], *found["sizes"]]:
        expected, actual = row["expected"], row.get("actual")
        table.add_row(
            f"{row['ids']:,}" + (" (this log)" if actual is not None else ""),
            f"{expected:,.0f}" if expected >= 10 else f"{expected:.2g}",
            f"{expected / max(1, row['ids']):.2g}",
            "" if actual is None else f"{actual:,}",
            f"{row['readers']:,.3g}" if row["readers"] < 100 else f"{row['readers']:,.0f}",
            f"{row['bytes']:,}",
        )
    return table

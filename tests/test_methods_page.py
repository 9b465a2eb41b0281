"""docs/methods.md: every key that it names exists, and every member of a registry is on it."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, get_args

import pytest
from pydantic import BaseModel

from recgpt.losses.corrections import CORRECTIONS
from recgpt.losses.objectives import OBJECTIVES
from recgpt.nn.attention import ATTENTION
from recgpt.nn.blocks import BLOCKS
from recgpt.nn.ids import ID_EMBEDDINGS
from recgpt.nn.numbers import NUMERIC_EMBEDDINGS
from recgpt.nn.positions import ADDED_POSITIONS
from recgpt.nn.time import TIME_EMBEDDINGS
from recgpt.stages import load_stage

ROOT = Path(__file__).resolve().parent.parent
TEXT = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
KEYS = sorted(set(re.findall(r"`((?:data|model|loss)\.[a-z_.]+)[`:]", TEXT)))
SOURCES = sorted(set(re.findall(r"`((?:recgpt|tests|configs)/[a-z_./]+)`", TEXT)))
REGISTRIES: dict[str, Any] = {
    "ids": ID_EMBEDDINGS,
    "blocks": BLOCKS,
    "attention": ATTENTION,
    "positions": ["rotary", *ADDED_POSITIONS],
    "numbers": NUMERIC_EMBEDDINGS,
    "time": TIME_EMBEDDINGS,
    "objectives": OBJECTIVES,
    "corrections": CORRECTIONS,
}


def sections(annotation: Any) -> list[type[BaseModel]]:
    """The config sections that a field may hold."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [found for inner in get_args(annotation) for found in sections(inner)]


def has(section: type[BaseModel], key: str) -> bool:
    first, _, rest = key.partition(".")
    field = section.model_fields.get(first)
    if field is None:
        return False
    return not rest or any(has(inner, rest) for inner in sections(field.annotation))


def test_the_page_names_keys_and_sources() -> None:
    assert len(KEYS) > 20
    assert len(SOURCES) > 8


@pytest.mark.parametrize("key", KEYS)
def test_every_key_is_one_of_the_config(key: str) -> None:
    load_stage("pretrain")
    from recgpt.pretrain.config import PretrainConfig

    assert has(PretrainConfig, key)


@pytest.mark.parametrize("source", SOURCES)
def test_every_source_is_there(source: str) -> None:
    assert (ROOT / source).exists()


@pytest.mark.parametrize("registry", REGISTRIES)
def test_every_member_of_a_registry_is_told_of(registry: str) -> None:
    missing = [name for name in REGISTRIES[registry] if not re.search(rf"(`|\*\*|: |\| ){name}\b", TEXT)]
    assert not missing

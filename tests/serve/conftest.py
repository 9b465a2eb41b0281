"""A fine-tuned run's folder (untrained weights), and services over it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from recgpt.ranker import Ranker
from recgpt.stages import load_stage
from tests.recgpt import builders

load_stage("serve")

if TYPE_CHECKING:
    from recgpt.serve.service import Service


@pytest.fixture(scope="session")
def ranker() -> Ranker:
    """Three of its items have no training event."""
    return builders.ranker(untrained=3)


@pytest.fixture(scope="session")
def run(ranker: Ranker, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "moved here"
    ranker.save_pretrained(folder / "model")
    return folder


@pytest.fixture
def service(ranker: Ranker, tmp_path: Path) -> Iterator[Callable[..., Service]]:
    """Makes services over one store; `ranked=False` leaves the heads out, other words are settings."""
    from recgpt.serve.config import ServeSection
    from recgpt.serve.service import Service
    from recgpt.serve.store import EventStore

    stores = []

    def make(ranked: bool = True, **settings: Any) -> Service:
        stores.append(EventStore(tmp_path / "events.sqlite"))
        section = ServeSection.model_validate(settings)
        return Service(ranker.recgpt, stores[-1], section, ranker if ranked else None)

    yield make
    for store in stores:
        store.close()

"""A prepared log with a clock, and runs of untrained models over it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from recgpt.api import RecGPT
from recgpt.data.prepare import prepare
from recgpt.data.prepared import Prepared
from recgpt.model import EventModel, ModelConfig
from recgpt.runs import TrainedRun
from tests.recgpt.builders import write_log

SMALL = {"dim": 16, "layers": 2, "heads": 2, "window": {"length": 16, "stride": 8, "chunk": 4}}


@pytest.fixture(scope="session")
def prepared(tmp_path_factory: pytest.TempPathFactory) -> Prepared:
    """30 users of 2 to 31 events of 40 items."""
    data = write_log(tmp_path_factory.mktemp("inspection"), list(range(2, 32)))
    return prepare({"data": data | {"split": {"kind": "leave_one_out"}}}, progress=False)


@pytest.fixture
def make_run(prepared: Prepared) -> Callable[..., TrainedRun]:
    """A run of an untrained model, `changes` in its config."""

    def make(**changes: Any) -> TrainedRun:
        torch.manual_seed(0)
        config = ModelConfig.model_validate(SMALL | {"id": {"rows": 97}} | changes)
        model = EventModel(config, prepared.schema, prepared.items.trained)
        return TrainedRun(Path("run"), RecGPT(model, prepared.items), prepared, {})

    return make

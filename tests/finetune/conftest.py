"""One log and one pretrained run on it, for all tests of this folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from recgpt.data.prepare import prepare
from recgpt.data.prepared import Prepared
from recgpt.stages import load_stage
from tests.finetune.logs import random_log, settings, write


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The `data` section of a random log."""
    return write(tmp_path_factory.mktemp("log"), random_log())


@pytest.fixture(scope="session")
def prepared(data: dict[str, Any]) -> Prepared:
    return prepare({"data": data}, progress=False)


@pytest.fixture(scope="session")
def pretrained(data: dict[str, Any], prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of `pretrain` on the same log, with dropout."""
    values = settings(data, model={"dropout": 0.5, "id_dropout": 0.5})
    values = {name: values[name] for name in ("data", "model", "optim", "run")}
    values["run"] |= {"steps": 3, "dir": str(tmp_path_factory.mktemp("pretrained") / "run")}
    load_stage("pretrain")(values)
    return Path(values["run"]["dir"])

"""What every test shares: known seeds and one thread, the real logs where they are present."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

# Before torch loads, as the Makefile does.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("WANDB_MODE", "offline")

import pytest
import torch

from recgpt.stages import load_stage

ROOT = Path(__file__).resolve().parent.parent

# Tests import the checkout's stages by their only name, `recgpt.pretrain`.
load_stage("pretrain")


@pytest.fixture(autouse=True)
def _same_start() -> Iterator[None]:
    """Seeds, one thread; what a test changes of torch's global settings is undone."""
    dtype, threads = torch.get_default_dtype(), torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    random.seed(0)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    yield
    torch.set_default_dtype(dtype)
    torch.set_num_threads(threads)
    if torch.are_deterministic_algorithms_enabled() != deterministic:  # the call alone takes 2 s
        torch.use_deterministic_algorithms(deterministic)


@pytest.fixture
def shared_data(monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the real logs (one folder a name), with RECGPT_DATA set to it."""
    folder = Path(os.environ.get("RECGPT_DATA") or ROOT.parent / "shared" / "data")
    if not folder.is_dir():
        pytest.skip(f"no real logs: {folder} does not exist; set RECGPT_DATA to their folder")
    monkeypatch.setenv("RECGPT_DATA", str(folder))
    return folder

"""The state of the global random generators, as plain data."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import torch


def seed_everything(seed: int) -> None:
    """Seed torch (all devices), numpy's global generator and `random`."""
    torch.manual_seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002 (others' code may draw from the global one)
    random.seed(seed)


def rng_state() -> dict[str, Any]:
    """The generators' states as JSON-ready data."""
    version, words, gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002
    assert isinstance(numpy_state, dict)
    numpy_state["state"]["key"] = numpy_state["state"]["key"].tolist()
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    return {
        "torch": _pack(torch.get_rng_state()),
        "cuda": [_pack(state) for state in cuda],
        "numpy": numpy_state,
        "python": [version, list(words), gauss],
    }


def set_rng_state(state: dict[str, Any]) -> None:
    """Put the generators where `rng_state` found them.

    Generators of CUDA devices are set only as far as this machine has as many as were saved.
    """
    torch.set_rng_state(_unpack(state["torch"]))
    for device, packed in enumerate(state["cuda"][: torch.cuda.device_count()]):
        torch.cuda.set_rng_state(_unpack(packed), device)
    numpy_state = dict(state["numpy"])
    key = np.array(numpy_state["state"]["key"], dtype=np.uint32)
    numpy_state["state"] = {**numpy_state["state"], "key": key}
    np.random.set_state(numpy_state)  # noqa: NPY002
    version, words, gauss = state["python"]
    random.setstate((version, tuple(words), gauss))


def _pack(state: torch.Tensor) -> str:
    return base64.b64encode(state.numpy().tobytes()).decode("ascii")


def _unpack(text: str) -> torch.Tensor:
    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)

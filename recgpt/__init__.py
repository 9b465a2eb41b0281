"""From an event log to one causal transformer whose cached user states feed retrieval, ranking and export.

The public names load on first use: `import recgpt` imports neither torch nor the data libraries.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from recgpt.api import RecGPT
    from recgpt.data.prepare import prepare
    from recgpt.evaluation import evaluate
    from recgpt.ranker import Ranker
    from recgpt.stages import CallableStage
    from recgpt.state import UserState

    finetune: CallableStage
    pretrain: CallableStage

__version__ = "0.1.0"

__all__ = [
    "Ranker",
    "RecGPT",
    "UserState",
    "__version__",
    "evaluate",
    "finetune",
    "prepare",
    "pretrain",
]

_MODULES = {
    "Ranker": "recgpt.ranker",
    "RecGPT": "recgpt.api",
    "UserState": "recgpt.state",
    "evaluate": "recgpt.evaluation",
    "prepare": "recgpt.data.prepare",
}
_STAGES = ("pretrain", "finetune")


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        value = getattr(importlib.import_module(_MODULES[name]), name)
    elif name in _STAGES:
        from recgpt.stages import load_stage

        value = load_stage(name)
    else:
        raise AttributeError(f"module 'recgpt' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

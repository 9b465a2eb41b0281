"""`recgpt pretrain CONFIG`: prepare the log when needed, train, and leave a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def run(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    from_run: str | Path | None = None,
    fresh: bool = False,
) -> dict[str, Any]:
    """Pretrain a model on an event log.

    Args:
        config: a YAML file or nested dicts with a `data` section.
        overrides: `key.sub=value` strings.
        from_run: start from the weights of this run, for example on a new day's log.
        fresh: remove an earlier run of the same folder.

    Returns:
        `{"run", "steps", "exported_step", "seconds", "targets", "finished_before", "valid"}`.
    """
    import torch

    from recgpt.api import RecGPT
    from recgpt.data.prepare import prepare
    from recgpt.model import EventModel
    from recgpt.train import run_status, train
    from recgpt.train.checkpoint import current_checkpoint
    from recgpt.train.stage import bind, load_weights, report, resolve

    from .config import PretrainConfig
    from .task import PretrainTask

    resolved = resolve(PretrainConfig, config, overrides, "pretrain", from_run)
    folder = Path(str(resolved.run.dir))
    run_status(folder, resolved, fresh)  # told before the log is read
    prepared = prepare(resolved.data)
    resolved = bind(resolved, prepared)
    status = run_status(folder, resolved, fresh)
    begun = status != "new" and current_checkpoint(folder) is not None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(resolved.run.seed)
        model = EventModel(resolved.model, prepared.schema, prepared.items.trained)
    model.items.fit(prepared.items)
    if resolved.run.start_from is not None and not begun:
        load_weights(model, RecGPT.from_pretrained(resolved.run.start_from).model, resolved.run.start_from)
    task = PretrainTask(resolved, prepared, model)
    return report(train(task, resolved.optim, resolved.run, resolved, fresh))

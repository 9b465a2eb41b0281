"""`recgpt pretrain CONFIG`: prepare the log when needed, train, and leave a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recgpt.config import load_config

from .config import PretrainConfig

if TYPE_CHECKING:
    from recgpt.data.prepared import Prepared
    from recgpt.model import EventModel


def resolve(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    from_run: str | Path | None = None,
) -> PretrainConfig:
    """The whole config with `run.dir` and `run.start_from` filled in."""
    resolved = load_config(PretrainConfig, config, overrides)
    changes: dict[str, Any] = {}
    if resolved.run.dir is None:
        name = "pretrain" if isinstance(config, Mapping) else Path(config).stem
        changes["dir"] = f"runs/{name}"
    if from_run is not None:
        changes["start_from"] = str(from_run)
    return resolved.model_copy(update={"run": resolved.run.model_copy(update=changes)})


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

    from recgpt.data.prepare import prepare
    from recgpt.model import EventModel
    from recgpt.train import run_status, train

    from .task import PretrainTask

    resolved = resolve(config, overrides, from_run)
    folder = Path(str(resolved.run.dir))
    run_status(folder, resolved, fresh)  # told before the log is read
    prepared = prepare(resolved.data)
    resolved = bind(resolved, prepared)
    status = run_status(folder, resolved, fresh)
    with torch.random.fork_rng():
        torch.manual_seed(resolved.run.seed)
        model = EventModel(resolved.model, prepared.schema)
    if resolved.run.start_from is not None and status == "new":
        load_weights(model, resolved.run.start_from)
    task = PretrainTask(resolved, prepared, model)
    result = train(task, resolved.optim, resolved.run, resolved, fresh)
    return {
        "run": str(result.run_dir),
        "steps": result.step,
        "exported_step": result.exported_step,
        "seconds": result.seconds,
        "targets": result.targets,
        "finished_before": result.finished_before,
        "valid": result.validation,
    }


def bind(config: PretrainConfig, prepared: Prepared) -> PretrainConfig:
    """The config with the place and the content of the prepared log: what a run resumes on and is evaluated on."""
    data = config.data.model_copy(update={"prepared": str(prepared.folder.absolute())})
    run = config.run.model_copy(update={"log": prepared.content})
    return config.model_copy(update={"data": data, "run": run})


def load_weights(model: EventModel, start_from: str) -> None:
    """Copy the weights of an earlier run.

    Raises:
        ConfigError: the two models have other shapes, or read other columns.
    """
    from recgpt.api import RecGPT
    from recgpt.errors import ConfigError

    start = RecGPT.from_pretrained(start_from)
    old, new = start.model.state_dict(), model.state_dict()
    differing = sorted(set(old) ^ set(new)) or [name for name in new if old[name].shape != new[name].shape]
    if differing:
        raise ConfigError(
            f"run.start_from: {start_from}: {differing[0]} differs between the two models (model.dim "
            f"{start.config.dim} there, {model.config.dim} here); use the same model section and data columns"
        )
    model.load_state_dict(old)

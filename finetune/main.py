"""`recgpt finetune CONFIG [--from RUN]`: ranking heads on the impressions of a log, and a run folder."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from recgpt.config import dump_config, flatten, parse_yaml, validate
from recgpt.errors import ConfigError

if TYPE_CHECKING:
    from recgpt.api import RecGPT
    from recgpt.data.items import ItemTable
    from recgpt.data.prepared import Prepared
    from recgpt.model import EventModel
    from recgpt.ranking.network import RankingNetwork

    from .config import FinetuneConfig


def run(
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str] = (),
    from_run: str | Path | None = None,
    fresh: bool = False,
    refit: str | Path | None = None,
) -> dict[str, Any]:
    """Train ranking heads on impressions.

    Args:
        config: a YAML file or nested dicts with the sections `data` (with impressions) and `tasks`.
        overrides: `key.sub=value` strings.
        from_run: the pretrained run whose event model is used; None: the event model is learned too.
        fresh: remove an earlier run of the same folder.
        refit: a finished run of the same config, which chose when to stop: train anew for as long, on the training and
            the validation impressions.

    Returns:
        `{"run", "steps", "exported_step", "seconds", "targets", "finished_before", "valid"}`.
    """
    from recgpt.api import RecGPT
    from recgpt.data.prepare import prepare
    from recgpt.train import run_status, train
    from recgpt.train.stage import bind, report, resolve

    from .config import FinetuneConfig
    from .task import FinetuneTask

    resolved = resolve(FinetuneConfig, config, overrides, "finetune", from_run)
    start = None if resolved.run.start_from is None else RecGPT.from_pretrained(resolved.run.start_from)
    resolved = complete(resolved, start)
    if refit is not None:
        resolved = as_refit(resolved, Path(refit))
    folder = Path(str(resolved.run.dir))
    run_status(folder, resolved, fresh)  # told before the log is read
    prepared = prepare(resolved.data)
    resolved = bind(resolved, prepared)
    run_status(folder, resolved, fresh)
    task = FinetuneTask(resolved, prepared, *build(resolved, prepared, start))
    return report(train(task, resolved.optim, resolved.run, resolved, fresh))


def complete(config: FinetuneConfig, start: RecGPT | None) -> FinetuneConfig:
    """Fill in what depends on the run that this one starts from: the event model's settings and its rate."""
    rate = config.tasks.backbone_lr
    if start is None and rate == 0:
        raise ConfigError("tasks.backbone_lr: 0 freezes an event model that nothing trained; add --from RUN")
    tasks = config.tasks.model_copy(update={"backbone_lr": (1.0 if start is None else 0.1) if rate is None else rate})
    if start is None:
        return config.model_copy(update={"tasks": tasks})
    settings = _over(start.config.model_dump(), config.model.model_dump(exclude_unset=True))
    model = validate(type(config.model), settings, f"model (the rest from {config.run.start_from})")
    return config.model_copy(update={"tasks": tasks, "model": model})


def _over(settings: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings with those that are given in their place; what is not given stays, inside sections too."""
    inner = {name for name, value in given.items() if isinstance(value, Mapping)}
    return {**settings, **given, **{name: _over(settings[name], given[name]) for name in inner}}


def as_refit(config: FinetuneConfig, chosen: Path) -> FinetuneConfig:
    """The config of a refit: both parts, no validation, the end where the chosen run's best weights were.

    Raises:
        ConfigError: the chosen run is not finished, or is the folder to write.
    """
    from recgpt.ranker import is_ranker
    from recgpt.train import finished_record

    record = finished_record(chosen)
    whole = is_ranker(chosen) and (chosen / "config.yaml").is_file()
    if record is None or "exported_at" not in record or not whole:
        raise ConfigError(f"--refit: {chosen} holds no finished run; finish `recgpt finetune` there first")
    if Path(str(config.run.dir)).resolve() == chosen.resolve():
        raise ConfigError(f"--refit: {chosen} is the run that chose; give the refit a folder: run.dir={chosen}-refit")
    _refuse_another(config, chosen)
    run = config.run.model_copy(
        update={"stop_at": record["exported_at"], "select": "last", "patience": None, "evaluate_every": 0}
    )
    tasks = config.tasks.model_copy(update={"fit_on": "train_valid"})
    return config.model_copy(update={"run": run, "tasks": tasks})


CHOSEN = ("model.", "heads.", "optim.", "tasks.", "run.epochs", "run.steps", "run.minutes", "run.start_from")
"""Settings that a refit shares with the run that chose when to stop; the seed may differ."""


def _refuse_another(config: FinetuneConfig, chosen: Path) -> None:
    """Raise where the chosen run was trained with other settings."""
    from recgpt.train.run import saved_settings

    saved = saved_settings(chosen / "config.yaml", type(config)) or {}
    for key, value in flatten(parse_yaml(dump_config(config), "the config")).items():
        if key.startswith(CHOSEN) and key != "tasks.fit_on" and saved.get(key) != value:
            raise ConfigError(
                f"--refit: {chosen} was trained with {key} {saved.get(key)}, this is {value}; give the same config"
            )


def build(
    config: FinetuneConfig, prepared: Prepared, start: RecGPT | None
) -> tuple[EventModel, ItemTable, RankingNetwork]:
    """The event model, its items and the ranking network, all as they are before the first step.

    A run that goes on builds them too: one that was killed before its first checkpoint has nothing else to begin with.
    """
    import torch

    from recgpt.model import EventModel
    from recgpt.ranking.network import RankingNetwork
    from recgpt.train.stage import load_weights

    from .task import fitted_items

    items = fitted_items(prepared, start, config.tasks.fit_on, config.tasks.backbone_lr == 0)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.run.seed)
        model = EventModel(config.model, prepared.schema, items.trained)
        network = RankingNetwork(config.heads, prepared.schema, config.model.dim, config.tasks.outcomes)
    rates = prepared.summary["impressions"]["rates"]
    for name in config.tasks.outcomes:
        if rates.get(name) is None and prepared.summary["impressions"]["train"]:
            raise ConfigError(
                f"tasks.outcomes: no training impression knows {name!r}; leave it out, or check data.impressions and "
                "data.split"
            )
    network.start_at({name: rate for name, rate in rates.items() if rate is not None})
    if start is None:
        model.items.fit(items)
    else:
        load_weights(model, start.model, str(config.run.start_from))
    return model, items, network

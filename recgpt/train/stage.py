"""What the training stages share: completing a config, binding it to its log, what a stage returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from recgpt.config import Section, flatten, load_config
from recgpt.errors import ConfigError
from recgpt.nn.ids import FullEmbedding, IdEmbedding
from recgpt.nn.ids.table import learn_tables

if TYPE_CHECKING:
    from recgpt.data.prepared import Prepared
    from recgpt.model import EventModel
    from recgpt.train.loop import TrainResult

LIMITS = ("epochs", "steps", "minutes")
READING = ("heads", "positions", "score")
"""Settings of a model that change what it computes from weights of the same shapes."""

StageConfig = TypeVar("StageConfig", bound=Section)


def with_some_end(values: Any, epochs: int) -> Any:
    """A stage's raw config with a limit in epochs where it names no limit."""
    run = values.get("run") or {} if isinstance(values, Mapping) else None
    if isinstance(run, Mapping) and all(run.get(limit) is None for limit in LIMITS):
        return {**values, "run": {**run, "epochs": epochs}}
    return values


def resolve(
    kind: type[StageConfig],
    config: str | Path | Mapping[str, Any],
    overrides: Sequence[str],
    stage: str,
    from_run: str | Path | None,
) -> StageConfig:
    """The whole config with `run.dir` (by default runs/NAME of the file) and `run.start_from` filled in."""
    resolved: Any = load_config(kind, config, overrides)
    changes: dict[str, Any] = {}
    if resolved.run.dir is None:
        changes["dir"] = f"runs/{stage if isinstance(config, Mapping) else Path(config).stem}"
    if from_run is not None:
        changes["start_from"] = str(from_run)
    return resolved.model_copy(update={"run": resolved.run.model_copy(update=changes)})


def bind(config: StageConfig, prepared: Prepared) -> StageConfig:
    """The config with the place and the content of the prepared log: what a run resumes on and is evaluated on."""
    whole: Any = config
    data = whole.data.model_copy(update={"prepared": str(prepared.folder.absolute())})
    run = whole.run.model_copy(update={"log": prepared.content})
    return whole.model_copy(update={"data": data, "run": run})


def load_weights(model: EventModel, start: EventModel, start_from: str) -> None:
    """Copy the weights of an earlier run's model; a table with a row for each item is matched by the items' hashes.

    Rounded tables of that model hold float32 rows afterwards.

    Raises:
        ConfigError: the two models have other shapes, read other columns, find an id's rows in another way, or would
            compute something else from the same weights.
    """
    learn_tables(start)
    old, new = start.state_dict(), model.state_dict()
    for name, ours, theirs in _id_embeddings(model, start):
        if isinstance(ours, FullEmbedding) and isinstance(theirs, FullEmbedding) and ours.dim == theirs.dim:
            ours.take_rows(theirs)
            old |= {key: value for key, value in new.items() if key.startswith(f"{name}.")}
    differing = sorted(set(old) ^ set(new)) or [name for name in new if old[name].shape != new[name].shape]
    if differing:
        name = differing[0]
        there, here = (str(list(m[name].shape)) if name in m else "absent" for m in (old, new))
        raise ConfigError(
            f"run.start_from: {start_from}: {name} differs between the two models ({there} there, {here} here); use "
            f"the same model section and data columns{_settings_apart(model, start)}"
        )
    for _, ours, theirs in _id_embeddings(model, start):
        # Of other bits, the same rows are rounded in another way.
        was, now = (each.config.model_dump(exclude={"bits"}) for each in (theirs, ours))
        if was != now and now["kind"] != "full":
            key = next(key for key in now if now[key] != was[key])
            raise ConfigError(
                f"run.start_from: {start_from}: model.id.{key} is {was[key]} there and {now[key]} here, so an id "
                f"would find another one's rows; use the same model.id"
            )
    hstu = ("window",) if model.config.block == "hstu" else ()  # it divides scores by the number of positions
    for key in READING + hstu:
        before, after = (getattr(each.config, key) for each in (start, model))
        if before != after:
            raise ConfigError(
                f"run.start_from: {start_from}: model.{key} is {before} there and {after} here, which would read the "
                f"same weights in another way; use the same model.{key}"
            )
    model.load_state_dict(old)


def _settings_apart(model: EventModel, start: EventModel) -> str:
    """`; apart are model.KEY (A there, B here), ...` of the settings in which two models differ; nothing of none."""
    was, now = (flatten(each.config.model_dump(mode="json")) for each in (start, model))
    apart = [f"model.{key} ({was.get(key)} there, {now[key]} here)" for key in now if now[key] != was.get(key)]
    return f"; apart are {', '.join(apart)}" if apart else ""


def _id_embeddings(model: EventModel, start: EventModel) -> Iterator[tuple[str, IdEmbedding, IdEmbedding]]:
    """The id embeddings that two models have under the same name."""
    others = dict(start.named_modules())
    for name, module in model.named_modules():
        other = others.get(name)
        if isinstance(module, IdEmbedding) and isinstance(other, IdEmbedding):
            yield name, module, other


def report(result: TrainResult) -> dict[str, Any]:
    """What a stage returns: `{"run", "steps", "exported_step", "seconds", "targets", "finished_before", "valid"}`."""
    return {
        "run": str(result.run_dir),
        "steps": result.step,
        "exported_step": result.exported_step,
        "seconds": result.seconds,
        "targets": result.targets,
        "finished_before": result.finished_before,
        "valid": result.validation,
    }

"""Checkpoints: everything a resumed run needs to go on bit for bit, and nothing that executes.

    runs/NAME/latest                            the name of the checkpoint in force
    runs/NAME/checkpoints/step_00001000/
        model.safetensors                       parameters and buffers
        optimizer.safetensors                   "exp_avg/<parameter>", "step/<parameter>", ...
        best.safetensors                        weights of the best validation (`select: best`)
        config.yaml                             the run's resolved config
        state.json                              position, random state, versions, digests

A checkpoint is written to a sibling folder, flushed, renamed, and only then named in `latest`;
older ones are removed last. Wherever a process is killed, `latest` names a whole checkpoint.
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
import xxhash
from safetensors import SafetensorError
from safetensors.torch import load as parse_tensors
from safetensors.torch import save as tensor_bytes
from torch import Tensor, nn

import recgpt
from recgpt.errors import RecGPTError
from recgpt.files import TMP_PREFIX, atomic_dir, atomic_write_text, remove_leftovers
from recgpt.train.optim import named_trainable
from recgpt.train.rng import rng_state, set_rng_state

LATEST = "latest"
FOLDER = "checkpoints"
STATE = "state.json"
_NAME = re.compile(r"step_(\d{8,})")


@dataclass
class Interval:
    """Sums since the last logged line, weighted by targets; a resumed run logs the same means."""

    loss: float = 0.0
    targets: int = 0
    seconds: float = 0.0
    metrics: dict[str, float] = field(default_factory=dict)


@dataclass
class Progress:
    """Where a run stands.

    Attributes:
        step: updates done.
        epoch: the epoch (0-based) of the next batch.
        batch: batches of that epoch that are done.
        seconds: training time over all resumes: batches and updates, neither validations nor
            checkpoints.
        targets: targets learned from.
        evaluated: the last step whose validation is done.
        validation: the metrics of that validation.
        best_step: the step of the best validation so far, None before the first.
        best_value: its selection metric.
        best_validation: all its metrics.
        stale: validations since then.
        interval: what is summed for the next logged line.
    """

    step: int = 0
    epoch: int = 0
    batch: int = 0
    seconds: float = 0.0
    targets: int = 0
    evaluated: int = 0
    validation: dict[str, float] = field(default_factory=dict)
    best_step: int | None = None
    best_value: float | None = None
    best_validation: dict[str, float] = field(default_factory=dict)
    stale: int = 0
    interval: Interval = field(default_factory=Interval)


@dataclass
class TrainState:
    """What a checkpoint holds: the model, its optimiser, the position, the best weights so far."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    progress: Progress
    best: dict[str, Tensor] | None = None


def save_checkpoint(run_dir: Path, state: TrainState, config_yaml: str, keep: int) -> Path:
    """Write the checkpoint of `state.progress.step`, make it the one in force, drop all but `keep`.

    Raises:
        RecGPTError: the disk is full; the checkpoint before stays in force.
    """
    folder = run_dir / FOLDER / f"step_{state.progress.step:08d}"
    with atomic_dir(folder, STATE) as temporary:
        contents = {
            "model.safetensors": _pack(state.model.state_dict()),
            "optimizer.safetensors": _pack(_optimizer_tensors(state)),
            "config.yaml": config_yaml.encode("utf-8"),
        }
        if state.best is not None:
            contents["best.safetensors"] = _pack(state.best)
        for name, data in contents.items():
            _write(temporary / name, data)
        _write(temporary / STATE, json.dumps(_state_json(state, contents)).encode("utf-8"))
    atomic_write_text(run_dir / LATEST, folder.name + "\n")
    for old in list_checkpoints(run_dir)[:-keep]:
        _remove(old)
    return folder


def list_checkpoints(run_dir: Path) -> list[Path]:
    """The whole checkpoints of a run, oldest first."""
    folders = [p for p in (run_dir / FOLDER).glob("step_*") if _NAME.fullmatch(p.name)]
    return sorted(folders, key=_step)


def current_checkpoint(run_dir: Path) -> Path | None:
    """The checkpoint that `latest` names or, if someone deleted that, the newest before it."""
    latest = run_dir / LATEST
    if not latest.is_file():
        return None
    name = latest.read_text(encoding="utf-8").strip()
    if not _NAME.fullmatch(name):
        raise RecGPTError(
            f"{latest}: {name!r} names no checkpoint; write the name of a folder of"
            f" {run_dir / FOLDER} into it, or start again with --fresh"
        )
    named = run_dir / FOLDER / name
    older = [path for path in list_checkpoints(run_dir) if _step(path) <= _step(named)]
    return older[-1] if older else None


def clean_checkpoints(run_dir: Path, current: Path | None) -> None:
    """Remove what a killed process left: temporary folders, checkpoints that never got in force."""
    remove_leftovers(run_dir)
    remove_leftovers(run_dir / FOLDER)
    for path in list_checkpoints(run_dir):
        if current is None or _step(path) > _step(current):
            _remove(path)


def load_checkpoint(folder: Path, state: TrainState) -> None:
    """Put `state` and the global random generators where they were when `folder` was written.

    Raises:
        RecGPTError: a file is missing or damaged, or the weights do not fit the model; one line
            names the file and what to go back to.
    """
    content = _read_state(folder)
    tensors = {}
    for name, (size, digest) in content["files"].items():
        data = _read(folder, name)
        if len(data) != size:
            raise _damaged(folder, name, f"{len(data)} bytes instead of {size}")
        if xxhash.xxh64_hexdigest(data) != digest:
            raise _damaged(folder, name, "its content has changed since it was written")
        if name.endswith(".safetensors"):
            tensors[name] = _unpack(folder, name, data)
    try:
        state.model.load_state_dict(tensors["model.safetensors"])
        _load_optimizer(state, content["optimizer"], tensors["optimizer.safetensors"])
    except (RuntimeError, KeyError, ValueError) as error:
        reason = " ".join(str(error).split())
        raise RecGPTError(
            f"{folder}: does not fit this model ({reason}); use the recgpt version that wrote it"
            f" ({content['recgpt']}), or start again with --fresh"
        ) from error
    interval = Interval(**content["progress"].pop("interval"))
    state.progress = Progress(**content["progress"], interval=interval)
    state.best = tensors.get("best.safetensors")
    set_rng_state(content["rng"])


def _state_json(state: TrainState, contents: Mapping[str, bytes]) -> dict[str, Any]:
    names = _names(state.model)
    groups = []
    for group in state.optimizer.param_groups:
        settings = {key: value for key, value in group.items() if key != "params"}
        groups.append({**settings, "names": [names[id(p)] for p in group["params"]]})
    digests = {name: [len(data), xxhash.xxh64_hexdigest(data)] for name, data in contents.items()}
    return {
        "progress": asdict(state.progress),
        "optimizer": groups,
        "rng": rng_state(),
        "world_size": 1,
        "torch": torch.__version__,
        "recgpt": recgpt.__version__,
        "files": digests,
    }


def _names(model: nn.Module) -> dict[int, str]:
    return {id(parameter): name for name, parameter in named_trainable(model).items()}


def _optimizer_tensors(state: TrainState) -> dict[str, Tensor]:
    names = _names(state.model)
    return {
        f"{key}/{names[id(parameter)]}": value
        for parameter, values in state.optimizer.state.items()
        for key, value in values.items()
    }


def _load_optimizer(state: TrainState, groups: list[dict[str, Any]], tensors: dict[str, Tensor]) -> None:
    """Give the optimiser its state back, by parameter name."""
    names = _names(state.model)
    plain = state.optimizer.state_dict()
    index: dict[str, int] = {}
    for live, numbered, saved in zip(state.optimizer.param_groups, plain["param_groups"], groups, strict=True):
        here = [names[id(parameter)] for parameter in live["params"]]
        if here != saved.pop("names"):
            raise ValueError("the optimizer's groups hold other parameters")
        index |= dict(zip(here, numbered["params"], strict=True))
        numbered |= {k: tuple(v) if isinstance(v, list) else v for k, v in saved.items()}
    plain["state"] = {}
    for flat_name, tensor in tensors.items():
        key, _, name = flat_name.partition("/")
        plain["state"].setdefault(index[name], {})[key] = tensor
    state.optimizer.load_state_dict(plain)


def _pack(tensors: Mapping[str, Tensor]) -> bytes:
    """Tensors as the bytes of a safetensors file; tied ones are written once under each name."""
    seen: set[int] = set()
    plain = {}
    for name, tensor in tensors.items():
        tensor = tensor.detach().cpu().contiguous()
        pointer = tensor.untyped_storage().data_ptr()
        plain[name] = tensor.clone() if pointer in seen else tensor
        seen.add(pointer)
    return tensor_bytes(plain)


def _unpack(folder: Path, name: str, data: bytes) -> dict[str, Tensor]:
    try:
        return parse_tensors(data)
    except SafetensorError as error:
        raise _damaged(folder, name, str(error)) from error


def _write(path: Path, data: bytes) -> None:
    with open(path, "wb") as file:
        file.write(data)


def _read(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise _damaged(folder, name, "missing") from error


def _read_state(folder: Path) -> dict[str, Any]:
    data = _read(folder, STATE)
    try:
        content = json.loads(data)
    except ValueError as error:
        raise _damaged(folder, STATE, f"cut off or not JSON, {len(data)} bytes") from error
    if not isinstance(content, dict) or "files" not in content:
        raise _damaged(folder, STATE, "it lists no files")
    return content


def _damaged(folder: Path, name: str, reason: str) -> RecGPTError:
    older = [path for path in list_checkpoints(folder.parent.parent) if _step(path) < _step(folder)]
    if older:
        remedy = f"delete the folder {folder} to go on from {older[-1].name}"
    else:
        remedy = "there is no earlier checkpoint: start again with --fresh"
    return RecGPTError(f"{folder / name}: damaged checkpoint ({reason}); {remedy}")


def _step(path: Path) -> int:
    return int(path.name.removeprefix("step_"))


def _remove(path: Path) -> None:
    """Remove a checkpoint; renamed first, so that half of one is never taken for a whole one."""
    dying = path.with_name(f"{TMP_PREFIX}{path.name}-removed")
    os.replace(path, dying)
    shutil.rmtree(dying)

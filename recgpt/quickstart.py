"""`recgpt quickstart`: a log becomes a model that recommends, in one command, with every file left to look at."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recgpt.config import read_config
from recgpt.data.hashing import hash_ids
from recgpt.data.prepared import Prepared
from recgpt.data.simulator import Simulation, SimulatorConfig, open_simulation, simulate
from recgpt.errors import ConfigError
from recgpt.evaluation import Block, Scorer, evaluate
from recgpt.export import export
from recgpt.files import write_json
from recgpt.recommend import recommend_user
from recgpt.runs import TrainedRun
from recgpt.stages import find_folder, load_stage

Size = Literal["tiny", "small"]
LONGEST = {"tiny": 0.5, "small": 4.0}  # minutes of training on a real log


def quickstart(data: str | None, size: Size, out: str | Path) -> dict[str, Any]:
    """Simulate (or find) a log, pretrain on it, evaluate beside the baselines, export, recommend.

    Args:
        data: a named log under `$RECGPT_DATA`, or None for the built-in simulator.
        size: `tiny` (up to a minute) or `small` (up to six).
        out: the folder for everything; the same command again goes on with what is there.

    Returns:
        The summary that is also written to `OUT/summary.json`: metrics of the model, the baselines and, on the
        simulator, the oracle; seconds of each stage; recommendations for one user.
    """
    import pyarrow.parquet as pq

    out, seconds = Path(out), _Seconds()
    extra: dict[str, Scorer] = {}
    story = {"data": data, "size": size}
    with seconds("data"):
        config, simulation = _simulated(size, out) if data is None else (_named(data, size, out), None)
    with seconds("pretrain"):
        trained = load_stage("pretrain")(config, fresh=_another_story(out, story))
    if simulation is not None:
        extra["oracle"] = oracle_scorer(simulation, TrainedRun.open(trained["run"]).prepared)
    with seconds("evaluate"):
        metrics = evaluate(trained["run"], "test", (10, 50), extra)
    with seconds("export"):
        export(trained["run"], out / "export")
    with seconds("recommend"):
        users = pq.read_table(out / "export" / "users" / "part-00000.parquet", columns=["user"])
        user = str(users["user"][0].as_py())
        recommended = recommend_user(trained["run"], user, 10)
    summary: dict[str, Any] = {
        name: metrics[name] for name in ("model", "popularity", "item_knn", "markov", "oracle") if name in metrics
    }
    summary |= {
        "paired": metrics.get("paired", {}),
        "seconds": seconds.of,
        "targets_per_second": trained["targets"] / max(trained["seconds"], 1e-9),
        "run": trained["run"],
        "recommended": {"user": user, "items": recommended["items"]},
    }
    write_json(out / "summary.json", summary)
    return summary


def _another_story(out: Path, story: dict[str, Any]) -> bool:
    """Whether `out` holds the quickstart of another log or size, whose run and export then make way for this one."""
    marker = out / "quickstart.json"
    other = marker.is_file() and read_config(marker) != story
    if other and (out / "export").is_dir():
        shutil.rmtree(out / "export")
    write_json(marker, story)
    return other


class _Seconds:
    """Wall seconds of each stage."""

    def __init__(self) -> None:
        self.of: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.of[stage] = round(time.perf_counter() - started, 3)


def _named(name: str, size: Size, out: Path) -> dict[str, Any]:
    """The config of a named log, with its training time capped."""
    folder = find_folder("configs") / "pretrain"
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml") if file.stem != "quickstart")
        raise ConfigError(
            f"--data: no log is named {name!r}; choose one of {', '.join(known)}, or write a config for your own"
        )
    config = read_config(path)
    run = dict(config.get("run") or {})
    longest = LONGEST[size]
    run |= {"dir": str(out / "run"), "minutes": min(longest, run.get("minutes") or longest)}
    return config | {"data": config["data"] | {"prepared": str(out / "prepared")}, "run": run}


def _simulated(size: Size, out: Path) -> tuple[dict[str, Any], Simulation]:
    """Write the simulated log and a config for it, unless they are there already."""
    wanted, folder = SimulatorConfig.preset(size), out / "log"
    if not (folder / "config.yaml").is_file() or read_config(folder / "config.yaml") != wanted.model_dump(mode="json"):
        simulate(wanted, folder)
    config = read_config(find_folder("configs") / "pretrain" / "quickstart.yaml")
    config["data"] = config["data"] | {
        "events": str(folder / "events.parquet"),
        "items": config["data"]["items"] | {"path": str(folder / "items.parquet")},
        "prepared": str(out / "prepared"),
    }
    config["run"] = config["run"] | {"dir": str(out / "run")}
    if size == "tiny":
        config["model"] = config["model"] | {"dim": 32, "dropout": 0.5}  # 9,000 events are soon learned by heart
        config["optim"] = config["optim"] | {"batch_tokens": 2560}
        config["run"] = config["run"] | {"epochs": 20}
    return config, open_simulation(folder)


def oracle_scorer(simulation: Simulation, prepared: Prepared) -> Scorer:
    """The best that any model can do: the true probabilities, the latent state known."""
    rows = prepared.items.rows(hash_ids(simulation.item_ids))
    known = rows >= 0

    def score(block: Block) -> NDArray[np.float32]:
        users = simulation.user_rows([str(user) for user in prepared.user_ids(block.users)])
        scores = np.full((len(users), prepared.n_items), -np.inf, np.float32)
        scores[:, rows[known]] = simulation.oracle_scores(users, "test")[:, known]
        return scores

    return score

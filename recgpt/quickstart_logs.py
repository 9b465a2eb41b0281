"""The logs of the quickstart: simulated or named, their configs, and what their truth is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from recgpt.config import read_config
from recgpt.data.hashing import hash_ids
from recgpt.data.prepared import Prepared
from recgpt.data.simulator import Simulation, SimulatorConfig, open_simulation, simulate
from recgpt.errors import ConfigError
from recgpt.evaluation import Block, Scorer
from recgpt.ranking_evaluation import Predictor
from recgpt.ranking_run import ImpressionScores
from recgpt.stages import find_folder

Size = Literal["tiny", "small"]
LONGEST = {"tiny": 0.5, "small": 4.0}  # minutes of training on a real log


@dataclass(frozen=True)
class Story:
    """What a quickstart runs.

    Attributes:
        pretrain: a config.
        finetune: a config, or None where the log has no outcomes to rank by.
        simulation: the truth, of a simulated log.
    """

    pretrain: dict[str, Any]
    finetune: dict[str, Any] | None
    simulation: Simulation | None = None

    def request(self, user: str) -> dict[str, Any]:
        """The context of a request of a user: in a simulated log, on the phone a minute after the last event."""
        if self.simulation is None:
            return {}
        [row] = self.simulation.user_rows([user])
        last = int(np.searchsorted(self.simulation.log.user, row, side="right")) - 1
        return {"device": "phone", "time": int(self.simulation.log.time_ms[last]) + 60_000}


def named(name: str, size: Size, out: Path) -> Story:
    """A named log under `$RECGPT_DATA`, with the training time capped.

    Raises:
        ConfigError: no log has this name.
    """
    folder = find_folder("configs")
    if not (folder / "pretrain" / f"{name}.yaml").is_file():
        known = sorted(file.stem for file in (folder / "pretrain").glob("*.yaml") if file.stem != "quickstart")
        raise ConfigError(
            f"--data: no log is named {name!r}; choose one of {', '.join(known)}, or write a config for your own"
        )
    configs: dict[str, dict[str, Any] | None] = {}
    for stage, run_name in (("pretrain", "run"), ("finetune", "ranking")):
        path = folder / stage / f"{name}.yaml"
        configs[stage] = _capped(read_config(path), size, out, run_name) if path.is_file() else None
    pretrain = configs["pretrain"]
    assert pretrain is not None
    return Story(pretrain, configs["finetune"])


def _capped(config: dict[str, Any], size: Size, out: Path, name: str) -> dict[str, Any]:
    """The config with its folders in `out` and at most some minutes of training."""
    run, longest = dict(config.get("run") or {}), LONGEST[size]
    run |= {"dir": str(out / name), "minutes": min(longest, run.get("minutes") or longest)}
    return config | {"data": config["data"] | {"prepared": str(out / f"prepared-{name}")}, "run": run}


def simulated(size: Size | SimulatorConfig, out: Path) -> Story:
    """Write the simulated log, unless it is there already, and complete the configs for it."""
    wanted = size if isinstance(size, SimulatorConfig) else SimulatorConfig.preset(size)
    folder = out / "log"
    if not (folder / "config.yaml").is_file() or read_config(folder / "config.yaml") != wanted.model_dump(mode="json"):
        simulate(wanted, folder)
    pretrain, finetune = (_placed(stage, folder, out) for stage in ("pretrain", "finetune"))
    # One prepared log serves both stages.
    pretrain["data"] = finetune["data"]
    pretrain["run"] = pretrain["run"] | {"dir": str(out / "run")}
    finetune["run"] = finetune["run"] | {"dir": str(out / "ranking")}
    if size == "tiny":
        pretrain["model"] = pretrain["model"] | {"dim": 32, "dropout": 0.5}  # 9,000 events are soon learned by heart
        pretrain["optim"] = pretrain["optim"] | {"batch_tokens": 2560}
        pretrain["run"] = pretrain["run"] | {"epochs": 20}
        finetune["optim"] = finetune["optim"] | {"batch_tokens": 640}
        finetune["run"] = finetune["run"] | {"epochs": 6, "log_every": 10}
    return Story(pretrain, finetune, open_simulation(folder))


def _placed(stage: str, folder: Path, out: Path) -> dict[str, Any]:
    config = read_config(find_folder("configs") / stage / "quickstart.yaml")
    places = {"events": str(folder / "events.parquet"), "prepared": str(out / "prepared")}
    items = config["data"]["items"] | {"path": str(folder / "items.parquet")}
    return config | {"data": config["data"] | places | {"items": items}}


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


def oracle_predictor(simulation: Simulation, prepared: Prepared) -> Predictor:
    """The true probabilities of each user's held-out impression, whose place is the user's last event."""

    def predict(rows: ImpressionScores) -> Mapping[str, NDArray[np.float32]]:
        users = simulation.user_rows([str(user) for user in prepared.user_ids(rows.user)])
        last = np.searchsorted(simulation.log.user, users, side="right") - 1
        return {"click": simulation.log.p_click[last], "like": simulation.log.p_like[last]}

    return predict

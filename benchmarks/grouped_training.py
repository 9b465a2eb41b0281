"""Impressions learned from per second: grouped by window, one pass for all of a user's, against one pass for each.

On a simulated log, a fine-tuning step (forward, backward) of the same network; the two in turn.
"""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

SECONDS = 5.0


def impressions_per_second(task: Any, seconds: float) -> float:
    """Forward and backward passes over the task's batches for some seconds, three batches left out."""
    done, began = 0, 0.0
    for number, batch in enumerate(task.batches(0, 0)):
        if number == 3:
            done, began = 0, time.perf_counter()
        result = task.step(batch)
        task.model.zero_grad(set_to_none=True)
        result.loss.backward()
        done += result.targets
        if number > 3 and time.perf_counter() - began > seconds:
            break
    return done / (time.perf_counter() - began)


def main() -> None:
    """Measure on a log of the simulator."""
    import torch

    from recgpt.config import load_config
    from recgpt.data.impression_batches import ImpressionBatches
    from recgpt.data.prepare import prepare
    from recgpt.data.simulator import SimulatorConfig
    from recgpt.quickstart_logs import simulated
    from recgpt.stages import load_stage

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--users", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    load_stage("finetune")
    stage = {name: importlib.import_module(f"recgpt.finetune.{name}") for name in ("config", "main", "task")}
    with tempfile.TemporaryDirectory() as folder:
        story = simulated(SimulatorConfig(n_users=arguments.users), Path(folder))
        config = stage["main"].complete(load_config(stage["config"].FinetuneConfig, story.finetune), None)
        prepared = prepare(config.data)
        task = stage["task"].FinetuneTask(config, prepared, *stage["main"].build(config, prepared, None))
        task.model.train()
        data = {"grouped": task.data}
        data["one by one"] = ImpressionBatches(
            prepared, config.model.window, config.optim.batch_tokens, ("train",), group=1
        )
        rates: dict[str, list[float]] = {name: [] for name in data}
        for _ in range(arguments.rounds):
            for name in data:
                task.data = data[name]
                rates[name].append(impressions_per_second(task, SECONDS))
    medians = {name: statistics.median(values) for name, values in rates.items()}
    ratio = medians["grouped"] / medians["one by one"]
    print(json.dumps(vars(arguments) | {"impressions_per_second": medians, "times_as_fast": ratio}))


if __name__ == "__main__":
    main()

"""Measure one (cell, seed) in this process: one thread, validation after the last epoch; no test part is read.

python -m benchmarks.ablations.measure PLAN LOG/NAME SEED RESULTS RUNS
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

from recgpt.config import load_config
from recgpt.errors import RecGPTError

from .plan import Job, Plan
from .results import Result, save


def measure(plan: Plan, job: Job, results: Path, runs: Path) -> Result:
    """Train and save the result; the run folder is removed then.

    Whatever a killed measurement left is removed first: seconds are those of one whole run.
    """
    import torch

    import recgpt
    from recgpt.data.prepare import prepare
    from recgpt.model import EventModel  # noqa: F401 (loading it is no training time)

    config = plan.resolve(job.cell)
    prepare(config.data, progress=False)
    folder = runs / job.name
    own = [f"run.seed={job.seed}", "run.threads=1", f"run.dir={json.dumps(str(folder))}"]
    began = time.process_time()
    report = recgpt.pretrain(plan.source(job.cell), overrides=[*plan.overrides(job.cell), *own], fresh=True)
    seconds = time.process_time() - began
    if not report["valid"]:
        raise RecGPTError(f"{job.name}: the log has no validation part; give it a split")
    result = Result(
        seed=job.seed,
        valid={name: round(value, 6) for name, value in report["valid"].items()},
        cpu_seconds=round(seconds, 1),
        targets=report["targets"],
        model_bytes=(folder / "model" / "model.safetensors").stat().st_size,
        date=datetime.now(UTC).date().isoformat(),
        versions={"recgpt": recgpt.__version__, "torch": torch.__version__},
        config=plan.settings(job.cell),
    )
    save(results, job, result)
    shutil.rmtree(folder)
    return result


def main() -> int:
    """The command line; one line on stderr when it fails."""
    plan, key, seed, results, runs = sys.argv[1:]
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    read: Plan = load_config(Plan, plan)
    try:
        measure(read, Job(read.cell(key), int(seed)), Path(results), Path(runs))
    except RecGPTError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())

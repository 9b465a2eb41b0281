"""Training: one loop for every stage, its optimiser, checkpoints, run folder and log."""

from recgpt.train.loop import TrainResult, train
from recgpt.train.optim import OptimConfig
from recgpt.train.run import RunConfig, finished_record, run_status
from recgpt.train.task import StepResult, Task

__all__ = [
    "OptimConfig",
    "RunConfig",
    "StepResult",
    "Task",
    "TrainResult",
    "finished_record",
    "run_status",
    "train",
]

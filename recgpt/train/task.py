"""What a stage gives to the loop: a model, its batches, and what one batch costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor, nn


@dataclass
class StepResult:
    """What one batch gave.

    Attributes:
        loss: scalar, differentiable; the mean over the batch's targets.
        targets: how many targets the mean is over; the weight of this batch in logged means.
        metrics: further numbers to log, each a mean over the same targets.
    """

    loss: Tensor
    targets: int
    metrics: Mapping[str, float] = field(default_factory=dict)


class Task(Protocol):
    """One stage's part of training.

    All state that training changes, besides the optimiser's, lives in `model.state_dict()`:
    persistent buffers count, other attributes of the task do not survive a resume. The loop calls
    `model.train()` before the first step and after every `evaluate`.
    """

    @property
    def model(self) -> nn.Module:
        """What is trained; a plain attribute will do."""
        ...

    @property
    def selection(self) -> str:
        """The validation metric that chooses weights; with a minus in front, less is better."""
        ...

    @property
    def lr_factors(self) -> Mapping[str, float]:
        """Prefix of parameter names -> factor of the learning rate; 1 for all others."""
        ...

    def batches(self, epoch: int, skip: int) -> Iterator[Any]:
        """The batches of `epoch` (0-based) without the first `skip`, which are passed over cheaply.

        A pure function of the seed and `epoch`: no global random state is read or changed, so the
        position in the data is two integers.
        """
        ...

    def steps_in_epoch(self, epoch: int) -> int:
        """How many batches `batches(epoch, 0)` yields; asked once an epoch, for the schedule."""
        ...

    def step(self, batch: Any) -> StepResult:
        """The loss of one batch; the loop does the backward pass and the update."""
        ...

    def evaluate(self) -> dict[str, float]:
        """Metrics on the validation part, such as `{"ndcg@10": 0.1}`."""
        ...

    def dump_batch(self, batch: Any, path: Path) -> None:
        """Write a batch that gave a non-finite loss to `path` (a `.safetensors` file)."""
        ...

    def export(self, path: Path) -> None:
        """Write the finished model's files into the existing empty folder `path`."""
        ...

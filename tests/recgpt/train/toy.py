"""A small real task: a table and a network with dropout that predict a rule of the item."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.nn import functional as F

from recgpt.config import Section
from recgpt.train import OptimConfig, RunConfig, StepResult


class ToyConfig(Section):
    """What a stage's config is to the loop."""

    optim: OptimConfig = OptimConfig(lr=0.01, warmup_steps=5)
    run: RunConfig


class ToyModel(nn.Module):
    """20 items -> 5 classes; a buffer counts the forward passes in training."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(20, 8)
        self.hidden = nn.Linear(8, 16)
        self.norm = nn.LayerNorm(16)
        self.out = nn.Linear(16, 5)
        self.calls: Tensor
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))

    def forward(self, item: Tensor) -> Tensor:
        """[B] -> [B, 5]."""
        if self.training:
            self.calls += 1
        x = F.dropout(self.hidden(self.table(item)), 0.3, self.training)
        return self.out(self.norm(F.gelu(x)))


class ToyTask:
    """7 batches of 12 an epoch; `hook(step)` runs in front of each forward pass."""

    selection = "ndcg@10"
    lr_factors: dict[str, float] = {}

    def __init__(self, seed: int = 0, n_batches: int = 7) -> None:
        torch.manual_seed(seed)
        self.model = ToyModel()
        self.n_batches = n_batches
        self.seen: list[tuple[int, int]] = []
        self.scores: list[float] = []

    def batches(self, epoch: int, skip: int) -> Iterator[tuple[int, int, Tensor]]:
        for number in range(skip, self.n_batches):
            generator = np.random.default_rng([epoch, number])
            yield epoch, number, torch.from_numpy(generator.integers(0, 20, 12))

    def steps_in_epoch(self, epoch: int) -> int:
        return self.n_batches

    def hook(self, epoch: int, number: int) -> None:
        self.seen.append((epoch, number))

    def step(self, batch: tuple[int, int, Tensor]) -> StepResult:
        epoch, number, item = batch
        self.hook(epoch, number)
        logits = self.model(item)
        loss = F.cross_entropy(logits, item % 5)
        return StepResult(loss, len(item), {"half": 0.5})

    def evaluate(self) -> dict[str, float]:
        assert not self.model.training
        if self.scores:
            return {"ndcg@10": self.scores.pop(0)}
        item = torch.arange(20)
        return {"ndcg@10": (self.model(item).argmax(1) == item % 5).float().mean().item()}

    def dump_batch(self, batch: tuple[int, int, Tensor], path: Path) -> None:
        save_file({"item": batch[2]}, path)

    def export(self, path: Path) -> None:
        save_file(self.model.state_dict(), path / "model.safetensors")


def config(run_dir: Path, **run: object) -> ToyConfig:
    """A config of 20 steps unless told otherwise."""
    if not {"steps", "epochs", "minutes"} & set(run):
        run["steps"] = 20
    return ToyConfig(run=RunConfig(dir=str(run_dir), threads=1, **run))

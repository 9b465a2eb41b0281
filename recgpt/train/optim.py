"""The optimiser: AdamW, which parameters decay, and the rate over the run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.optim import AdamW

from recgpt.config import Section
from recgpt.errors import ConfigError
from recgpt.train.device import Precision

Beta = Annotated[float, Field(ge=0, lt=1)]


class OptimConfig(Section):
    """AdamW (Loshchilov and Hutter, 2019), gradient clipping and the rate over the run."""

    batch_tokens: int = Field(12_800, ge=1)
    """Padded events of a batch, at most (one window may exceed it; finetuning cuts where it is full)."""

    precision: Precision = "auto"
    """Products in training: bf16 where the machine has them (auto), bf16, or fp32. A finished run computes in float32
    (`evaluate` and `export` in bf16 where `--precision` says so)."""

    lr: float = Field(1e-3, gt=0)
    """Highest learning rate."""

    weight_decay: float = Field(0.01, ge=0)
    """Decoupled decay of weight matrices; norms, biases and embedding tables have none."""

    decay_embeddings: bool = False
    """Let `weight_decay` act on embedding tables too."""

    betas: tuple[Beta, Beta] = (0.9, 0.98)
    """Decay of the running mean of the gradient and of its square."""

    eps: float = Field(1e-8, gt=0)
    """Added to the denominator of the update."""

    warmup_steps: int = Field(100, ge=0)
    """Steps over which the rate rises linearly from 0."""

    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    """How the rate falls after the warm-up, over the part of the run that is done."""

    final_lr_fraction: float = Field(0.1, ge=0, le=1)
    """The rate at the end of the run as a fraction of `lr`; `constant` has no use for it."""

    clip_norm: float = Field(1.0, ge=0)
    """Gradients of a larger norm are scaled down to this one; 0 leaves them as they are."""


def lr_fraction(config: OptimConfig, step: int, progress: float) -> float:
    """The rate of a step as a fraction of `config.lr`: warm-up times decay.

    Args:
        config: the schedule.
        step: updates done before this one.
        progress: the part of the run that is done, in [0, 1].
    """
    warmup = min(1.0, (step + 1) / config.warmup_steps) if config.warmup_steps else 1.0
    progress = min(max(progress, 0.0), 1.0)
    low = config.final_lr_fraction
    if config.schedule == "constant":
        decay = 1.0
    elif config.schedule == "linear":
        decay = 1.0 - (1.0 - low) * progress
    else:
        decay = low + (1.0 - low) * 0.5 * (1.0 + math.cos(math.pi * progress))
    return warmup * decay


def named_trainable(model: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that training changes, by name; a shared one stands under its first name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def table_parameters(model: nn.Module) -> set[int]:
    """The `id()` of every embedding table.

    A table is a parameter of an `nn.Embedding` or `nn.EmbeddingBag`, or one that its module names
    in an attribute `embedding_tables` (a tuple of parameter names).
    """
    found = set()
    for module in model.modules():
        names: Iterable[str] = getattr(module, "embedding_tables", ())
        if isinstance(module, nn.Embedding | nn.EmbeddingBag):
            names = ("weight",)
        found |= {id(module.get_parameter(name)) for name in names}
    return found


def build_optimizer(model: nn.Module, config: OptimConfig, factors: Mapping[str, float] | None = None) -> AdamW:
    """AdamW with two groups for each factor of the rate: what decays and what does not.

    Parameters of fewer than two dimensions (norms, biases, temperatures) and embedding tables do
    not decay: a table's rows are touched with very different frequency, and decay would pull the
    rare ones to zero between their updates. Fused: 2.6 times as fast as `foreach` on 2 CPU cores.

    Args:
        model: what is trained.
        config: rate and decay.
        factors: prefix of parameter names -> factor of the rate; 1 for all others.

    Raises:
        ConfigError: no parameter is trainable.
    """
    parameters = named_trainable(model)
    if not parameters:
        raise ConfigError("model: no trainable parameter is left; free at least one")
    spared = set() if config.decay_embeddings else table_parameters(model)
    groups: dict[tuple[float, bool], list[nn.Parameter]] = {}
    for name, parameter in parameters.items():
        spare = parameter.ndim < 2 or id(parameter) in spared
        factor = next((f for prefix, f in (factors or {}).items() if name.startswith(prefix)), 1.0)
        groups.setdefault((factor, spare), []).append(parameter)
    return AdamW(
        [
            {"params": groups[key], "weight_decay": 0.0 if key[1] else config.weight_decay, "lr_factor": key[0]}
            for key in sorted(groups)
        ],
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=True,
    )


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Give every group its rate: `lr` times its factor."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group.get("lr_factor", 1.0)


def gradient_norm(optimizer: torch.optim.Optimizer) -> Tensor:
    """The 2-norm of all gradients together, a scalar on the model's device."""
    return torch.nn.utils.get_total_norm(_gradients(optimizer))


def clip_gradients(optimizer: torch.optim.Optimizer, norm: float, limit: float) -> None:
    """Scale the gradients, whose norm is `norm`, down to `limit` if they are larger; 0 = never."""
    if 0 < limit < norm:
        torch._foreach_mul_(_gradients(optimizer), limit / norm)


def _gradients(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    return [
        parameter.grad
        for group in optimizer.param_groups
        for parameter in group["params"]
        if parameter.grad is not None
    ]

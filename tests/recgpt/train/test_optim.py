"""Parameter groups, the rate, clipping: expected numbers by hand."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from recgpt.config import load_config
from recgpt.errors import ConfigError
from recgpt.train.optim import (
    OptimConfig,
    build_optimizer,
    clip_gradients,
    gradient_norm,
    lr_fraction,
    set_lr,
)


class Hashed(nn.Module):
    embedding_tables = ("slots",)

    def __init__(self) -> None:
        super().__init__()
        self.slots = nn.Parameter(torch.ones(4, 2))
        self.mix = nn.Parameter(torch.ones(3, 2))


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.ids = nn.Embedding(5, 2)
        self.hashed = Hashed()
        self.linear = nn.Linear(2, 2)
        self.norm = nn.LayerNorm(2)
        self.scale = nn.Parameter(torch.ones(()))
        self.frozen = nn.Parameter(torch.ones(2, 2), requires_grad=False)
        self.tied = nn.Linear(2, 5, bias=False)
        self.tied.weight = self.ids.weight


def decays(model: nn.Module, config: OptimConfig) -> dict[str, float]:
    names = {id(p): name for name, p in model.named_parameters()}
    groups = build_optimizer(model, config).param_groups
    return {names[id(p)]: g["weight_decay"] for g in groups for p in g["params"]}


def test_what_decays() -> None:
    assert decays(Model(), OptimConfig(weight_decay=0.3)) == {
        "ids.weight": 0.0,
        "hashed.slots": 0.0,
        "hashed.mix": 0.3,
        "linear.weight": 0.3,
        "linear.bias": 0.0,
        "norm.weight": 0.0,
        "norm.bias": 0.0,
        "scale": 0.0,
    }
    asked = decays(Model(), OptimConfig(weight_decay=0.3, decay_embeddings=True))
    assert [n for n, d in asked.items() if d] == [
        "ids.weight",
        "hashed.slots",
        "hashed.mix",
        "linear.weight",
    ]


def test_decay_acts_on_the_weights_it_should() -> None:
    model = Model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    after = dict(model.named_parameters())
    # A zero gradient leaves only the decay: p * (1 - lr * weight_decay) = .95 p.
    torch.testing.assert_close(after["linear.weight"], 0.95 * before["linear.weight"])
    assert torch.equal(after["ids.weight"], before["ids.weight"])
    assert torch.equal(after["norm.weight"], before["norm.weight"])


def test_groups_are_decay_times_factor() -> None:
    model = Model()
    names = {id(p): name for name, p in model.named_parameters()}
    config = OptimConfig(lr=0.5, weight_decay=0.3)
    optimizer = build_optimizer(model, config, {"hashed.": 0.1, "norm.weight": 0.0})
    groups = {
        (group["lr_factor"], group["weight_decay"]): [names[id(p)] for p in group["params"]]
        for group in optimizer.param_groups
    }
    assert groups == {
        (0.0, 0.0): ["norm.weight"],
        (0.1, 0.3): ["hashed.mix"],
        (0.1, 0.0): ["hashed.slots"],
        (1.0, 0.3): ["linear.weight"],
        (1.0, 0.0): ["scale", "ids.weight", "linear.bias", "norm.bias"],
    }
    set_lr(optimizer, 0.2)
    assert {(g["lr_factor"], g["lr"]) for g in optimizer.param_groups} == {(0.0, 0.0), (0.1, 0.2 * 0.1), (1.0, 0.2)}
    # The order of the groups is that of their keys, so that a checkpoint's groups are found again.
    again = build_optimizer(Model(), config, {"norm.weight": 0.0, "hashed.": 0.1}).param_groups
    assert [(g["lr_factor"], g["weight_decay"]) for g in again] == list(groups)


def test_without_factors_every_rate_is_the_rate() -> None:
    optimizer = build_optimizer(Model(), OptimConfig())
    assert len(optimizer.param_groups) == 2
    set_lr(optimizer, 0.125)
    assert [group["lr"] for group in optimizer.param_groups] == [0.125, 0.125]
    plain = torch.optim.SGD(Model().parameters(), lr=1.0)  # an optimiser of elsewhere has no factors
    set_lr(plain, 0.125)
    assert plain.param_groups[0]["lr"] == 0.125


def test_a_factor_scales_the_update_and_the_decay() -> None:
    model = Model()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = build_optimizer(model, OptimConfig(lr=0.1, weight_decay=0.5), {"linear": 0.2})
    set_lr(optimizer, 0.1)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    optimizer.step()
    after = dict(model.named_parameters())
    # Adam's first step is the rate: .1 x .2; the decay is rate x .5 of the weight.
    torch.testing.assert_close(after["linear.weight"], before["linear.weight"] * (1 - 0.02 * 0.5) - 0.02)
    torch.testing.assert_close(after["linear.bias"], before["linear.bias"] - 0.02)
    torch.testing.assert_close(after["hashed.mix"], before["hashed.mix"] * (1 - 0.1 * 0.5) - 0.1)
    torch.testing.assert_close(after["norm.weight"], before["norm.weight"] - 0.1)


def test_nothing_to_train_is_refused() -> None:
    model = nn.Linear(2, 2).requires_grad_(False)
    with pytest.raises(ConfigError, match="no trainable parameter"):
        build_optimizer(model, OptimConfig())


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        # warm-up over 4 steps: 1/4, 2/4, ...; the decay is at 0, 1/2 and the end of the run.
        ("linear", [0.25, 0.6, 0.2]),
        ("cosine", [0.25, 0.6, 0.2]),
        ("constant", [0.25, 1.0, 1.0]),
    ],
)
def test_rate_over_the_run(schedule: str, expected: list[float]) -> None:
    config = load_config(OptimConfig, {"schedule": schedule, "warmup_steps": 4, "final_lr_fraction": 0.2})
    points = [(0, 0.0), (50, 0.5), (100, 1.0)]
    assert [lr_fraction(config, *point) for point in points] == pytest.approx(expected)


def test_cosine_at_a_quarter() -> None:
    config = OptimConfig(schedule="cosine", warmup_steps=0, final_lr_fraction=0.0)
    # (1 + cos(pi / 4)) / 2
    assert lr_fraction(config, 0, 0.25) == pytest.approx(0.8535533905932737)


def test_warmup_and_decay_multiply() -> None:
    config = OptimConfig(schedule="linear", warmup_steps=10, final_lr_fraction=0.0)
    assert lr_fraction(config, 4, 0.2) == pytest.approx(0.5 * 0.8)


def given_gradients(*values: list[float]) -> tuple[torch.optim.Optimizer, list[Tensor]]:
    parameters = [nn.Parameter(torch.zeros(len(v))) for v in values]
    for parameter, value in zip(parameters, values, strict=True):
        parameter.grad = torch.tensor(value)
    unused = nn.Parameter(torch.zeros(3))
    gradients = [p.grad for p in parameters if p.grad is not None]
    return torch.optim.AdamW([*parameters, unused]), gradients


@pytest.mark.parametrize(("limit", "expected"), [(2.6, [0.6, 0.8, 2.4]), (13.0, [3, 4, 12]), (0.0, [3, 4, 12])])
def test_clipping(limit: float, expected: list[float]) -> None:
    optimizer, gradients = given_gradients([3.0, 4.0], [12.0])
    norm = gradient_norm(optimizer).item()
    assert norm == pytest.approx(13.0)  # 3, 4, 12, 13
    clip_gradients(optimizer, norm, limit)
    assert torch.cat(gradients).tolist() == pytest.approx(expected)

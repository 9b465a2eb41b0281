"""The ranking network against its formula, row by row; what it starts from; what is unknown."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from recgpt.config import load_config
from recgpt.data.batch import N_GAP_BUCKETS, N_HOURS
from recgpt.errors import ConfigError
from recgpt.ranking.network import HeadsConfig, RankingNetwork, Requests
from tests.recgpt.builders import schema

DIM, STATES, POSITIONS, N = 8, 3, 7, 11
WIDTH = 4
SIZES = {"attention": 5, "features": WIDTH, "id_rows": 53, "hidden": [9, 6]}


def network(seed: int = 0, log: object = None, **changes: object) -> RankingNetwork:
    """In eval mode, its weights far from their quiet start."""
    torch.manual_seed(seed)
    config = HeadsConfig.model_validate(SIZES | changes)
    made = RankingNetwork(config, log or schema(), DIM, ("click", "like", "share"))  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return made.eval()


def requests(seed: int = 1) -> tuple[Tensor, Requests]:
    """Hidden vectors of the states and N requests, some of their values unknown."""
    torch.manual_seed(seed)
    unknown = torch.rand(N) < 0.3
    made = Requests(
        state=torch.randint(STATES, (N,)),
        visible=torch.randint(1, POSITIONS + 1, (N,)),
        query=F.normalize(torch.randn(N, DIM), dim=-1),
        encoded=torch.randn(N, DIM),
        vector=F.normalize(torch.randn(N, DIM), dim=-1),
        item=torch.randint(-(2**63), 2**63 - 1, (N,)).masked_fill(unknown, 0),
        hour=torch.randint(N_HOURS, (N,)),
        gap=torch.randint(N_GAP_BUCKETS, (N,)),
        features={
            "brand": torch.randint(2**40, (N,)).masked_fill(unknown.flip(0), 0),
            "tags": torch.randint(2**40, (N, 3)).masked_fill(torch.rand(N, 3) < 0.3, 0),
        },
        context={
            "device": torch.randint(2**40, (N,)).masked_fill(unknown.roll(2), 0),
            "volume": torch.randn(N).masked_fill(unknown.roll(4), math.nan),
        },
    )
    return torch.randn(STATES, POSITIONS, DIM), made


@pytest.mark.parametrize(("behaviour", "softmax"), [("din", True), ("din", False), ("pool", True)])
def test_logits_are_the_formula(behaviour: str, softmax: bool) -> None:
    made, (hidden, asked) = network(behaviour=behaviour, softmax=softmax), requests()
    root = DIM**0.5
    expected = []
    for row in range(N):
        x = asked.encoded[row]
        encoded = made.norm.weight * (x - x.mean()) / (x.var(unbiased=False) + 1e-6).sqrt()
        own = hidden[asked.state[row], : asked.visible[row]]
        at = (torch.tensor([0]), asked.visible[row : row + 1])
        [drawn] = made.behaviour(made.behaviour.read(own[None]), *at, encoded[None])
        q, v = root * asked.query[row], root * asked.vector[row]
        joined = [own[0], q, v, q * v, drawn, encoded, root * made.id(asked.item[row])]
        joined += [root * made.features[name](asked.features[name][row]) for name in ("brand", "tags")]
        joined += [root * made.context[name](asked.context[name][row]) for name in ("device", "volume")]
        assert made.gap is not None
        assert made.hour is not None
        joined += [root * made.gap.table.weight[asked.gap[row]], root * made.hour.table.weight[asked.hour[row]]]
        x = torch.cat(joined)
        for layer in made.layers:
            x = layer.weight @ x + layer.bias
            x = x * torch.sigmoid(x)
        expected.append(made.out.weight @ x + made.out.bias)
    found = made(made.read(hidden), asked)
    assert found.shape == (N, 3)
    torch.testing.assert_close(found, torch.stack(expected), rtol=1e-4, atol=1e-4)


def test_a_row_does_not_depend_on_the_others() -> None:
    made, (hidden, asked) = network(), requests()
    reading, order = made.read(hidden), torch.randperm(N)[: N - 3]
    some = {name: column[order] for name, column in vars(asked).items() if isinstance(column, Tensor)}
    some |= {name: {key: c[order] for key, c in getattr(asked, name).items()} for name in ("features", "context")}
    torch.testing.assert_close(made(reading, Requests(**some)), made(reading, asked)[order], rtol=1e-5, atol=1e-5)


def test_everything_reaches_the_logits() -> None:
    made, (hidden, asked) = network(), requests()
    base = made(made.read(hidden), asked)
    changes = {name: getattr(asked, name).roll(1, 0) for name in ("query", "vector", "encoded", "item", "hour", "gap")}
    changes |= {"visible": asked.visible % POSITIONS + 1, "state": (asked.state + 1) % STATES}
    columns = {name: field for field in ("features", "context") for name in getattr(asked, field)}
    for name, field in columns.items():
        known = getattr(asked, field)
        changes[name] = {**known, name: known[name].roll(1, 0)}
    for name, value in changes.items():
        field = columns.get(name, name)
        other = made(made.read(hidden), replace(asked, **{field: value}))
        assert (other - base).abs().max() > 1e-3, name


def test_what_is_unknown_adds_nothing() -> None:
    made, (hidden, asked) = network(), requests()
    nothing = torch.zeros(N, dtype=torch.int64)
    blank = replace(
        asked,
        item=nothing,
        hour=nothing,
        gap=nothing,
        features={"brand": nothing, "tags": nothing[:, None].expand(-1, 3)},
        context={"device": nothing, "volume": torch.full((N,), math.nan)},
    )
    found = made(made.read(hidden), blank)
    assert found.isfinite().all()
    with torch.no_grad():
        for module in (made.id, *made.features.values(), *made.context.values(), made.gap, made.hour):
            assert module is not None
            for parameter in module.parameters():
                known = torch.randn_like(parameter)
                known[0] = parameter[0] if module in (made.gap, made.hour) else known[0]  # their row of "unknown"
                parameter.copy_(known)
    assert torch.equal(made(made.read(hidden), blank), found)


def test_the_row_of_unknown_times_is_zero_and_stays_so() -> None:
    torch.manual_seed(0)
    made = RankingNetwork(HeadsConfig.model_validate(SIZES), schema(), DIM, ("click",))
    hidden, asked = requests()
    made(made.read(hidden), asked).sum().backward()
    assert made.gap is not None
    assert made.hour is not None
    for table in (made.gap.table, made.hour.table):
        assert table.weight[0].abs().max() == 0
        assert table.weight.grad is not None
        assert table.weight.grad[0].abs().max() == 0
        assert table.weight.grad.abs().max() > 0


def test_it_starts_at_the_base_rates() -> None:
    torch.manual_seed(0)
    made = RankingNetwork(HeadsConfig.model_validate(SIZES), schema(), DIM, ("click", "like", "share")).eval()
    made.start_at({"click": 0.2, "like": 0.0, "other": 0.9})
    # log(1 / 4); a rate of 0 counts as 1e-4; unknown: 1 / 2
    assert made.out.bias.tolist() == pytest.approx([-math.log(4), math.log(1e-4 / (1 - 1e-4)), 0.0])
    made.out.weight.data.zero_()
    hidden, asked = requests()
    p = torch.sigmoid(made(made.read(hidden), asked))
    torch.testing.assert_close(p, torch.tensor([0.2, 1e-4, 0.5]).expand(N, 3))
    made.start_at({"click": 1.0})
    assert made.out.bias[0].item() == pytest.approx(math.log((1 - 1e-4) / 1e-4), rel=1e-4)


def test_dropout_is_for_training_only() -> None:
    made, (hidden, asked) = network(dropout=0.5), requests()
    still = made(made.read(hidden), asked)
    assert torch.equal(made(made.read(hidden), asked), still)
    made.train()
    assert not torch.equal(made(made.read(hidden), asked), made(made.read(hidden), asked))


def test_a_log_without_a_clock_has_no_time_features() -> None:
    made = network(log=schema(has_time=False, time=None, context={}, features={}))
    names = {name.split(".")[0] for name in made.state_dict()}
    assert names == {"behaviour", "id", "norm", "layers", "out"}
    assert made.layers[0].in_features == 6 * DIM + WIDTH
    hidden, asked = requests()
    assert made(made.read(hidden), asked).shape == (N, 3)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"behaviour": "dnn"}, "behaviour: .*'pool' or 'din'"),
        ({"hidden": []}, "hidden"),
        ({"dropout": 1.0}, "dropout"),
        ({"atention": 3}, "did you mean 'attention'"),
    ],
)
def test_settings_that_do_not_fit(values: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(HeadsConfig, values)

"""The query tower: today's map by default, a map for each look-ahead, and queries that ask for an outcome."""

import pytest
import torch
from torch import nn

from recgpt.nn.queries import QueryTower, hide_wanted

OUTCOMES = {"like": "binary", "seconds": "watch_time"}


def tower(heads: int = 1, outcomes: dict[str, str] | None = None) -> QueryTower:
    """A tower with weights far from their start."""
    torch.manual_seed(0)
    made = QueryTower(6, heads, outcomes)  # type: ignore[arg-type]
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += torch.randn_like(parameter)
        for module in made.modules():
            if isinstance(module, nn.Embedding) and module.padding_idx is not None:
                module.weight[module.padding_idx] = 0
    return made


def test_one_head_is_a_plain_linear_map_that_starts_as_the_identity() -> None:
    torch.manual_seed(3)
    plain = nn.Linear(6, 6, bias=False)
    after = torch.rand(1)
    torch.manual_seed(3)
    made = QueryTower(6)
    assert torch.rand(1) == after  # the modules made after it draw what they always drew
    assert list(made.state_dict()) == ["weight"]
    assert torch.equal(made.weight, torch.eye(6))
    with torch.no_grad():
        made.weight.copy_(plain.weight)
    hidden = torch.randn(4, 6)
    assert torch.equal(made(hidden), plain(hidden))
    assert torch.equal(made(hidden, torch.zeros(4, dtype=torch.int64), {"like": torch.ones(4)}), plain(hidden))


def test_each_row_goes_through_the_map_of_its_look_ahead() -> None:
    made = tower(heads=3)
    hidden, head = torch.randn(7, 6), torch.tensor([0, 2, 1, 0, 1, 2, 2])
    maps = [made.weight, *(ahead.weight for ahead in made.ahead)]
    expected = torch.stack([maps[h] @ x for h, x in zip(head.tolist(), hidden, strict=True)])
    torch.testing.assert_close(made(hidden, head), expected)
    assert torch.equal(made(hidden, head)[head == 0], made(hidden)[head == 0])
    made(hidden, head).sum().backward()
    for h, weight in enumerate(maps):
        torch.testing.assert_close(weight.grad, hidden[head == h].sum(0).expand(6, 6))


def test_new_look_aheads_start_as_the_identity() -> None:
    hidden = torch.randn(4, 6)
    assert torch.equal(QueryTower(6, 3)(hidden, torch.tensor([0, 1, 2, 1])), hidden)


def test_an_outcome_moves_the_query_and_an_unknown_one_does_not() -> None:
    made, hidden = tower(outcomes=OUTCOMES), torch.randn(3, 6)
    plain = made(hidden)
    nothing = torch.full((3,), torch.nan)
    assert torch.equal(made(hidden, None, {"like": nothing, "seconds": nothing}), plain)
    liked = made(hidden, None, {"like": torch.tensor([1.0, 0.0, torch.nan]), "seconds": nothing})
    like = made.outcomes["like"].table.weight  # rows: unknown, 0, 1
    step = 0.5 * 6**0.5
    for row, value in enumerate((like[2], like[1])):
        torch.testing.assert_close(liked[row], made.weight @ (hidden[row] + step * value))
    assert torch.equal(liked[2], plain[2])
    both = made(hidden, None, {"like": torch.ones(3), "seconds": torch.tensor([3.0, 30.0, 300.0])})
    assert not torch.allclose(both[0] - plain[0], both[1] - plain[1])


def test_outcomes_reach_every_look_ahead() -> None:
    made, hidden, head = tower(2, OUTCOMES), torch.randn(2, 6), torch.tensor([0, 1])
    moved = made(hidden, head, {"like": torch.ones(2)}) - made(hidden, head)
    assert (moved.abs().max(1).values > 0.01).all()


@pytest.mark.parametrize(("share", "n_names"), [(0.3, 1), (0.3, 2), (0.5, 3)])
def test_hidden_outcomes(share: float, n_names: int) -> None:
    n = 40_000
    wanted = {f"o{i}": torch.full((n,), float(i)) for i in range(n_names)}
    torch.manual_seed(0)
    hidden = hide_wanted(wanted, share)
    known = torch.stack([~hidden[name].isnan() for name in wanted])
    for i, name in enumerate(wanted):
        assert (hidden[name][known[i]] == i).all()  # the others stay what they are
        assert (~known[i]).float().mean().item() == pytest.approx(share + (1 - share) * share, abs=0.012)
    none = (~known).all(0).float().mean().item()  # a query that asks for nothing
    assert none == pytest.approx(share + (1 - share) * share**n_names, abs=0.012)
    assert torch.equal(wanted["o0"], torch.zeros(n))


def test_nothing_is_hidden_at_share_0() -> None:
    wanted = {"like": torch.tensor([0.0, 1.0])}
    assert torch.equal(hide_wanted(wanted, 0.0)["like"], wanted["like"])
    assert hide_wanted({}, 0.5) == {}

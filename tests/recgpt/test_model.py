"""The event model's own rules."""

import torch

from tests.recgpt.builders import recgpt


def test_id_dropout_hides_only_items_of_which_something_else_is_known() -> None:
    encoder = recgpt(id_dropout=0.9).model.items.train()
    count = 400
    items = torch.full((4 * count,), 7)
    content, brand = torch.full((4 * count, 6), torch.nan), torch.zeros(4 * count, dtype=torch.int64)
    content[:count] = 1.0  # content alone
    brand[count : 2 * count] = 5  # a feature alone
    content[2 * count : 3 * count] = 0.0  # a vector that says nothing
    torch.manual_seed(0)
    trained = encoder(items, {"brand": brand}, content)
    whole = encoder.eval()(items, {"brand": brand}, content)
    hidden = (trained != whole).any(-1).view(4, count)
    share = hidden.float().mean(-1)
    assert share[2:].tolist() == [0, 0]
    assert (share[:2] - 0.9).abs().max() < 0.06  # four standard deviations
    without_id = encoder(torch.zeros_like(items), {"brand": brand}, content)
    assert torch.equal(trained[hidden.view(-1)], without_id[hidden.view(-1)])

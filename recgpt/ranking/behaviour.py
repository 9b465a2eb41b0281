"""Behaviour heads: what a candidate draws from a state's hidden vectors.

B states of P positions (the first token, then the window's events), width D; N requests, each with one candidate, its
state and how many positions of it are visible. Whatever does not depend on the candidate is computed once a state, in
`read`; `forward` then costs O(P A) a candidate.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Reading = tuple[Tensor, ...]
"""What a head keeps of B states, each [B, P, ...]."""


class BehaviourHead(nn.Module):
    """One way to read behaviour.

    Args:
        dim: width D of hidden vectors and candidates; also of what `forward` gives.
        attention: width A of the attention, for heads that have one.
        softmax: whether a candidate's attention weights sum to 1.
    """

    def __init__(self, dim: int, attention: int, softmax: bool = True) -> None:
        super().__init__()
        self.dim, self.attention, self.softmax = dim, attention, softmax

    def read(self, hidden: Tensor) -> Reading:
        """The part that depends on the states alone: [B, P, D] -> tensors [B, P, ...]."""
        raise NotImplementedError

    def forward(self, reading: Reading, state: Tensor, visible: Tensor, candidate: Tensor) -> Tensor:
        """What N candidates draw from their states, [N, D].

        Args:
            reading: of B states.
            state: int64 [N], which of them.
            visible: int64 [N], positions that a request may read, from the first; at least 1.
            candidate: [N, D].
        """
        raise NotImplementedError


class PoolHead(BehaviourHead):
    """The mean of the visible hidden vectors: the same for every candidate, and the control for the others."""

    def __init__(self, dim: int, attention: int, softmax: bool = True) -> None:
        super().__init__(dim, attention, softmax)
        self.value = nn.Linear(dim, dim, bias=False)

    def read(self, hidden: Tensor) -> Reading:
        """Running sums, so that every prefix's mean is one look-up."""
        return (self.value(hidden).cumsum(1),)

    def forward(self, reading: Reading, state: Tensor, visible: Tensor, candidate: Tensor) -> Tensor:
        """See `BehaviourHead.forward`."""
        return reading[0][state, visible - 1] / visible.unsqueeze(-1)


class DinHead(BehaviourHead):
    """Target attention (DIN: Zhou et al. 2018, section 4.3): sum_i a_i v_i with a_i = MLP([q, k_i, q - k_i, q * k_i]).

    The paper has no softmax, so that the strength of an interest counts; but a sum grows with the history, and what
    was learned on short ones is off on longer ones (`softmax`). With W = [W1 W2 W3 W4] the first layer
    is (W1 + W3) q + (W2 - W3) k_i + W4 (q * k_i): the second term is computed once a state. SiLU stands for Dice,
    whose batch statistics would make a score depend on what else is in the batch.
    """

    def __init__(self, dim: int, attention: int, softmax: bool = True) -> None:
        super().__init__(dim, attention, softmax)
        self.query = nn.Linear(dim, attention, bias=False)
        self.key = nn.Linear(dim, attention, bias=False)
        self.value = nn.Linear(dim, dim, bias=False)
        self.from_query = nn.Linear(attention, attention)
        self.from_key = nn.Linear(attention, attention, bias=False)
        self.from_product = nn.Linear(attention, attention, bias=False)
        self.weight = nn.Linear(attention, 1)
        nn.init.zeros_(self.weight.bias)

    def read(self, hidden: Tensor) -> Reading:
        """Keys [B, P, A], their share of the first layer [B, P, A], values [B, P, D]."""
        keys = self.key(hidden)
        return keys, self.from_key(keys), self.value(hidden)

    def weights(self, reading: Reading, state: Tensor, visible: Tensor, candidate: Tensor) -> Tensor:
        """The attention a_i, float32 [N, P]; zero where not visible."""
        keys, from_key, _ = reading
        q = self.query(candidate)
        if len(keys) == 1:
            inner = self._one_state(keys[0], from_key[0], q)
        else:
            inner = self.from_product(q.unsqueeze(1) * keys.index_select(0, state))
            inner = inner + from_key.index_select(0, state) + self.from_query(q).unsqueeze(1)
        hidden = torch.arange(keys.shape[1], device=keys.device) >= visible.unsqueeze(-1)
        a = self.weight(F.silu(inner)).squeeze(-1).float()
        return a.masked_fill(hidden, -torch.inf).softmax(-1) if self.softmax else a.masked_fill(hidden, 0.0)

    def _one_state(self, keys: Tensor, from_key: Tensor, q: Tensor) -> Tensor:
        """The first layer of N candidates over one state's keys [P, A], [N, P, A], without the keys' copy for each.

        W4 (q * k) = (W4 diag(q)) k: one batched product, whose sum with the event's share is taken on the way.
        """
        products = (self.from_product.weight * q.unsqueeze(1)).transpose(1, 2)
        inner = torch.baddbmm(from_key.expand(len(q), -1, -1), keys.expand(len(q), -1, -1), products)
        return inner.add_(self.from_query(q).unsqueeze(1))

    def forward(self, reading: Reading, state: Tensor, visible: Tensor, candidate: Tensor) -> Tensor:
        """See `BehaviourHead.forward`."""
        a = self.weights(reading, state, visible, candidate).to(reading[2].dtype)
        if len(reading[2]) == 1:
            return a @ reading[2][0]
        return torch.bmm(a.unsqueeze(1), reading[2].index_select(0, state)).squeeze(1)


BEHAVIOUR_HEADS: dict[str, type[BehaviourHead]] = {"pool": PoolHead, "din": DinHead}

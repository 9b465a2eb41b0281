"""How often batches hold an item, and how often a target is that item: the estimates behind the logQ corrections.

`streaming`, Yi et al. 2019 (Sampling-bias-corrected neural modeling, algorithm 2): each item keeps its last step a and
a running mean b of the steps between appearances; pi = 1 / b, the probability that a *batch* holds the item. Hashed
slots, several hashes; a collision only shortens gaps, so the largest b of the hashes is taken.
`count_min` (Cormode and Muthukrishnan 2005) and `exact` count targets; q = count / all, the probability that a
*draw* is the item.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from recgpt.nn.hashing import hash_rows


class FrequencyEstimate(nn.Module):
    """Streaming estimate of pi(i), the probability that a batch contains item i.

    The rate starts at 1 / appearances and falls to `rate`, so that the first gaps count fully and no starting value
    is guessed.

    Args:
        slots: slots of each hash.
        rate: final rate of the running mean.
        n_hashes: hashes.
    """

    step: Tensor
    last: Tensor
    gap: Tensor
    seen: Tensor

    def __init__(self, slots: int, rate: float, n_hashes: int = 2) -> None:
        super().__init__()
        self.slots, self.rate, self.n_hashes = slots, rate, n_hashes
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))
        self.register_buffer("last", torch.zeros(n_hashes, slots, dtype=torch.int32))
        self.register_buffer("gap", torch.ones(n_hashes, slots))
        self.register_buffer("seen", torch.zeros(n_hashes, slots, dtype=torch.int32))

    def _slots(self, hashes: Tensor) -> Tensor:
        return hash_rows(hashes, self.n_hashes, self.slots, seed=7).t()

    @torch.no_grad()
    def update(self, hashes: Tensor) -> None:
        """Count one batch that holds the distinct item hashes int64 [U]."""
        self.step += 1
        for j, slots in enumerate(self._slots(hashes)):
            slot = slots.unique()  # colliding items count as one
            seen = self.seen[j, slot] + 1
            rate = torch.clamp(1.0 / seen, min=self.rate)
            gap = (self.step - self.last[j, slot]).float()
            self.gap[j, slot] = (1 - rate) * self.gap[j, slot] + rate * gap
            self.last[j, slot] = self.step.to(torch.int32)
            self.seen[j, slot] = seen

    @torch.no_grad()
    def log_probability(self, hashes: Tensor) -> Tensor:
        """Log pi of item hashes, float32 [U], at most 0; an item never seen is taken for one that comes next."""
        waited = (self.step + 1).float()  # since step 0
        gaps = (
            torch.where(self.seen[j, slot] > 0, self.gap[j, slot], waited) for j, slot in enumerate(self._slots(hashes))
        )
        gap = torch.stack(list(gaps)).amax(0)
        return -gap.clamp(min=1.0).log()


class CountMinEstimate(nn.Module):
    """Count-min sketch of the targets seen: q(i), the probability that a target is item i.

    A count is never too low, and with probability 1 - failure at most error x (all counts) too high. So q of rare
    items is too high and, as negatives, they weigh too little: size it for the rarest that matter.

    Args:
        error: epsilon; ceil(e / epsilon) slots a hash.
        failure: delta; ceil(ln(1 / delta)) hashes.
    """

    counts: Tensor

    def __init__(self, error: float, failure: float) -> None:
        super().__init__()
        self.slots, self.n_hashes = math.ceil(math.e / error), max(1, math.ceil(math.log(1 / failure)))
        self.register_buffer("counts", torch.zeros(self.n_hashes, self.slots, dtype=torch.int64))

    def _slots(self, hashes: Tensor) -> Tensor:
        return hash_rows(hashes, self.n_hashes, self.slots, seed=11).t()

    @torch.no_grad()
    def update(self, hashes: Tensor, counts: Tensor) -> None:
        """Count distinct item hashes int64 [U] that were targets int64 [U] times."""
        self.counts.scatter_add_(1, self._slots(hashes), counts.expand(self.n_hashes, -1))

    @torch.no_grad()
    def count(self, hashes: Tensor) -> Tensor:
        """Estimated counts of item hashes, int64 [U]."""
        return self.counts.gather(1, self._slots(hashes)).amin(0)

    def log_draw(self, hashes: Tensor) -> Tensor:
        """Log q of item hashes, float32 [U]; an item never seen is taken for one seen once."""
        return (self.count(hashes).clamp(min=1) / self.counts[0].sum().clamp(min=1)).log()


class ExactEstimate(nn.Module):
    """q(i) by the counts of the whole training part.

    Args:
        hashes: int64 [I] distinct items.
        counts: int64 [I] how often each is a target.
    """

    hashes: Tensor
    log_q: Tensor

    def __init__(self, hashes: Tensor, counts: Tensor) -> None:
        super().__init__()
        ordered, order = hashes.sort()
        self.register_buffer("hashes", ordered, persistent=False)  # the log tells them anew
        share = counts[order].clamp(min=1) / counts.sum().clamp(min=1)
        self.register_buffer("log_q", share.log().float(), persistent=False)

    def update(self, hashes: Tensor, counts: Tensor) -> None:
        """Nothing: all counts are known."""

    def log_draw(self, hashes: Tensor) -> Tensor:
        """Log q of item hashes, float32 [U], all of them among the known."""
        return self.log_q[torch.searchsorted(self.hashes, hashes)]


Estimate = FrequencyEstimate | CountMinEstimate | ExactEstimate

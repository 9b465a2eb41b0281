"""How often batches hold an item: the streaming estimate behind the logQ correction.

Yi et al. 2019 (Sampling-bias-corrected neural modeling, algorithm 2): each item keeps its last step a and a
running mean b of the steps between appearances; pi = 1 / b. Hashed slots, several hashes; a collision only shortens
gaps, so the largest b of the hashes is taken.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from recgpt.nn.embedding import hash_rows


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
        """Log pi of item hashes, float32 [U], at most 0."""
        slots = self._slots(hashes)
        gap = torch.stack([self.gap[j, slot] for j, slot in enumerate(slots)]).amax(0)
        return -gap.clamp(min=1.0).log()

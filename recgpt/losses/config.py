"""The `loss` section of a config."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recgpt.config import Section


class LossConfig(Section):
    """The next-item contrastive loss."""

    targets: Literal["declared", "all"] = "declared"
    """Events that training predicts: those of `data.target`, or all (evaluation keeps to `data.target`): `all` where
    the declared ones are few."""
    temperature: float = Field(default=0.05, gt=0)
    """Cosine scores are divided by this."""
    columns: Literal["batch", "catalogue"] = "batch"
    """What a positive is compared with: the distinct targets of the batch, or every item (then pi = 1: a full
    softmax)."""
    correction: bool = True
    """Lower a negative's logit by log pi(item), a streaming estimate of how often batches hold it."""
    multiplicity: bool = False
    """The plain N x N in-batch form, without correction: an item counts once for every row that it is the target of."""
    mask_user: Literal["none", "items"] = "none"
    """`items`: the other targets of the same sequence are no negatives."""
    detach: Literal["none", "table", "all"] = "none"
    """Where the target side stops gradients: nowhere, at the tables, or at the item vector (Ramasamy 2023)."""
    estimate_slots: int = Field(default=1 << 18, ge=1)
    """Slots of the streaming estimate."""
    estimate_rate: float = Field(default=0.05, gt=0, le=1)
    """Rate of the streaming estimate."""

    @model_validator(mode="after")
    def _one_form(self) -> LossConfig:
        if self.multiplicity and self.columns == "catalogue":
            raise ValueError("multiplicity: true counts the targets of a batch; it needs columns: batch")
        return self

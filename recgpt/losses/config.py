"""The `loss` section of a config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from recgpt.config import Section
from recgpt.data.masked import MaskedConfig
from recgpt.data.targets import microseconds
from recgpt.losses.auxiliary import AuxiliaryConfig
from recgpt.losses.corrections import Correction
from recgpt.losses.self_supervision import SelfSupervisionConfig

_DRAWN = ("uniform", "popularity", "mixed")
_EARLIER = {True: "inclusion", False: "none"}


class LossConfig(Section):
    """The next-item contrastive loss."""

    objective: Literal["next", "masked"] = "next"
    """What is predicted: what comes next, or (`masked`: BERT4Rec, with `model.causal: false`) hidden events."""
    masked: MaskedConfig = MaskedConfig()
    """Which events `objective: masked` hides."""
    targets: Literal["declared", "all"] = "declared"
    """Events that training predicts: those of `data.target`, or all (evaluation keeps to `data.target`): `all` where
    the declared ones are few."""
    newest: int | None = Field(default=None, ge=1)
    """Predict (and learn auxiliary targets) only from the positions before each user's newest training events, so many,
    as SASRec and BERT4Rec do with a window's length: a user of many events then weighs less. null: all of them."""
    kind: Literal["softmax", "bce", "gbce", "bpr", "hinge", "logistic"] = "softmax"
    """What a positive and its negatives cost: softmax; pointwise logistic (`bce`), with the positive weighed for the
    share of negatives seen (`gbce`: gSASRec); or the mean over pairs of log(1 + e^(s- - s+)) (`bpr`, also called
    `logistic`) or of max(0, margin + s- - s+) (`hinge`)."""
    temperature: float = Field(default=0.05, gt=0)
    """Scores are divided by this."""
    margin: float = Field(default=1.0, ge=0)
    """Of `hinge`, in units of scores / temperature."""
    calibration: float = Field(default=0.75, ge=0, le=1)
    """t of `gbce`: 0 is bce, at 1 scores are calibrated probabilities."""
    columns: Literal["batch", "catalogue", "uniform", "mixed", "popularity"] = "batch"
    """What a positive is compared with: the distinct targets of the batch; every item (then pi = 1: a full softmax);
    items drawn `uniform` or by `popularity` from those with a training event; or targets and uniform draws, `mixed`."""
    n_negatives: int = Field(default=256, ge=1)
    """How many are drawn, for the whole batch (or for each target: `per_row`)."""
    per_row: bool = False
    """Every target has drawn negatives of its own; with `mask_user: items`, none that its window holds."""
    power: float = Field(default=0.75, ge=0)
    """Of `popularity`: an item is drawn in proportion to its training events ** power."""
    hard: int = Field(default=0, ge=0)
    """Keep only this many negatives of each target, those with the highest corrected logits; 0 = all."""
    correction: Correction = "inclusion"
    """How draws are made to stand for the catalogue. `inclusion`: distinct columns, a negative's logit lowered by log
    pi, pi = the probability that the batch holds it. By draws of probability q: `renormalised` lowers a negative's
    by log(n q / (1 - q of the positive)), `khrylchenko` has its gradient and a value of its own; `yi` and `tfrs`
    lower the positive's too, hits kept or removed; `naive` does not. Default `none` for other kinds and for
    `multiplicity`, and `renormalised` with `per_row`."""
    estimate: Literal["streaming", "exact", "count_min"] = "streaming"
    """Where pi or q of a batch's targets comes from: the mean gap between batches that hold an item (pi only), counts
    of the whole training part as next items (whatever `objective`, `newest` or `horizon`), or a count-min sketch of the
    targets so far."""
    multiplicity: bool = False
    """The plain N x N in-batch form, without correction: an item counts once for every row that it is the target of."""
    mask_id: bool = True
    """A column of the target's own item is no negative; only `multiplicity: true` can have it false."""
    mask_user: Literal["none", "items", "sequence"] = "none"
    """`items`: the other targets of the same sequence are no negatives. `sequence`, with `multiplicity`: nor are the
    columns of the same sequence, though other sequences' columns of the same items are (Ramasamy 2023)."""
    detach: Literal["none", "table", "all"] = "none"
    """Where the target side stops gradients: nowhere, at the tables, or at the item vector (Ramasamy 2023), whose map
    W_v then stays as it starts."""
    estimate_slots: int = Field(default=1 << 18, ge=1)
    """Slots of the streaming estimate."""
    estimate_rate: float = Field(default=0.05, gt=0, le=1)
    """Rate of the streaming estimate."""
    sketch_error: float = Field(default=1e-5, gt=0, lt=1)
    """Count-min: a count is too high by at most this share of all counts (e / error slots)."""
    sketch_failure: float = Field(default=0.01, gt=0, lt=1)
    """Count-min: but for this probability (ln(1 / failure) hashes)."""
    horizon: str | None = None
    """Instead of the next item, predict a random one of the user's targets within this time after the last event that
    the position has seen, strictly later than it: a number and s, min, h, d or w (28d). Positions without one are
    dropped (metric `dropped`: how many for each target); so is the first, which has seen no event, so that a user
    without events is not learned."""
    horizon_positions: int | None = Field(default=None, ge=1)
    """With `horizon`: how many positions of a window predict, drawn at random; null = all."""
    condition_dropout: float = Field(default=0.3, ge=0, lt=1)
    """With `model.condition`: the probability that a training query is told nothing of its target's outcomes, and,
    where it is told of them, that any one is left out."""
    self_supervision: SelfSupervisionConfig = SelfSupervisionConfig()
    """The item encoder's own loss."""
    auxiliary: AuxiliaryConfig = AuxiliaryConfig()
    """What positions predict of their next event besides the item."""

    @field_validator("horizon")
    @classmethod
    def _length(cls, value: str | None) -> str | None:
        if value is not None:
            microseconds(value)
        return value

    @model_validator(mode="before")
    @classmethod
    def _correction(cls, values: Any) -> Any:
        """The correction that goes with the other settings where none is told; how an earlier form is written now."""
        if not isinstance(values, Mapping):
            return values
        told = values.get("correction")
        if isinstance(told, bool):
            raise ValueError(f"correction: {str(told).lower()} is now written {_EARLIER[told]}")
        if told is not None:
            return values
        if values.get("kind", "softmax") != "softmax" or values.get("multiplicity") is True:
            return {**values, "correction": "none"}
        return {**values, "correction": "renormalised"} if values.get("per_row") is True else values

    @model_validator(mode="after")
    def _one_form(self) -> LossConfig:
        if self.multiplicity and self.columns != "batch":
            raise ValueError("multiplicity: true counts the targets of a batch; it needs columns: batch")
        if self.multiplicity and self.correction != "none":
            raise ValueError(f"multiplicity: true is the plain form; it needs correction: none, not {self.correction}")
        if not self.multiplicity and not self.mask_id:
            raise ValueError("mask_id: false needs multiplicity: true; other columns are distinct items")
        if not self.mask_id and self.kind != "softmax":
            raise ValueError(
                f"mask_id: false keeps hits in the sum of a softmax; with kind: {self.kind} set it to true"
            )
        if not self.multiplicity and self.mask_user == "sequence":
            raise ValueError("mask_user: sequence needs multiplicity: true; use items")
        if self.per_row and self.columns not in ("uniform", "popularity"):
            raise ValueError(
                f"per_row: true draws negatives; it needs columns: uniform or popularity, not {self.columns}"
            )
        if self.horizon_positions is not None and self.horizon is None:
            raise ValueError(f"horizon_positions: {self.horizon_positions} goes with horizon; set that too, or null")
        self._corrected()
        return self

    def _corrected(self) -> None:
        """The correction fits what it corrects."""
        form = self.correction
        if form == "none":
            return
        if self.kind != "softmax":
            raise ValueError(f"correction: {form} corrects a softmax; with kind: {self.kind} use none")
        if form == "inclusion":
            if self.per_row:
                raise ValueError("correction: inclusion needs distinct columns; with per_row use renormalised")
            return
        if self.columns == "catalogue":
            raise ValueError(f"correction: {form} corrects draws; with columns: catalogue use none")
        batch_units = self.columns == "batch" and form in ("yi", "tfrs", "naive")
        if self.columns in ("batch", "mixed") and self.estimate == "streaming" and not batch_units:
            raise ValueError(
                f"estimate: streaming estimates how often batches hold an item, and correction: {form} needs how often "
                f"a target is it; use exact or count_min"
            )

    @property
    def draws(self) -> bool:
        """Whether batches bring drawn negatives."""
        return self.columns in _DRAWN

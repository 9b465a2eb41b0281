"""Size and parts of the transformer."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from recgpt.config import Section
from recgpt.nn.positions import BiasConfig


class TransformerConfig(Section):
    """Size and parts of the transformer."""

    dim: int = Field(default=64, ge=2)
    """Width D of every vector in the model."""
    layers: int = Field(default=2, ge=1)
    """Number of blocks."""
    heads: int = Field(default=2, ge=1)
    """Attention heads H; with rotary positions D / H must be even."""
    feed_forward: float = Field(default=2.0, gt=0)
    """Width of the feed-forward layer, in D (`hstu` has none)."""
    dropout: float = Field(default=0.2, ge=0, lt=1)
    """Dropout on the embeddings and on what each layer adds (attention weights are never dropped)."""
    attention: Literal["auto", "flex", "matmul", "reference", "sdpa", "xformers"] = "auto"
    """Attention backend: torch's fused `sdpa`, `matmul` (faster in bfloat16 on CPU), the slow `reference`,
    `auto` = the best of these; on GPU also `flex` and `xformers`. It changes no weight (`hstu` has its own)."""
    block: Literal["standard", "sasrec", "bert", "hstu", "ligr"] = "standard"
    """The layer: `standard` is pre-norm with gated feed-forward; the others are as published (SASRec, BERT4Rec, HSTU,
    LiGR)."""
    positions: Literal["rotary", "learned", "reverse", "none"] = "rotary"
    """`rotary`; `learned`: a vector per place in the window; `reverse`: a vector per number of later events, as with
    left padding. With `reverse` older events' vectors change when one is appended: append encodes the window anew, and
    there are no ranking heads on such a model."""
    bias: BiasConfig = BiasConfig()
    """Learned biases of the attention scores."""
    causal: bool = True
    """Whether an event sees earlier ones only. `false` is BERT4Rec's model, for the masked objective: a [MASK] after
    the newest event gives the query, append encodes the window anew, and there are no ranking heads on it."""

    @model_validator(mode="after")
    def _heads_divide(self) -> TransformerConfig:
        if self.positions == "rotary" and self.dim % (2 * self.heads):
            raise ValueError(f"heads: {self.heads} must divide dim {self.dim} into an even width")
        if self.dim % self.heads:
            raise ValueError(f"heads: {self.heads} must divide dim {self.dim}")
        return self

    @property
    def incremental(self) -> bool:
        """Whether an event's hidden vector stays what it is when further events follow."""
        return self.causal and self.positions != "reverse"

"""The number format of matrix products in training; weights, sums and inference stay float32."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

Precision = Literal["auto", "bf16", "fp32"]


def product_dtype(precision: Precision) -> torch.dtype:
    """bfloat16 or float32; `auto` takes bfloat16 where the machine multiplies it in hardware."""
    if precision == "auto":
        return torch.bfloat16 if cpu_has_bf16() else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this CPU has bfloat16 products (AVX512-BF16, AMX or Arm's); a torch that cannot tell says no."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    capabilities: Mapping[str, Any] = tell() if tell is not None else {}
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))

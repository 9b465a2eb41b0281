"""Where training computes, and in which number format."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from recgpt.errors import ConfigError

Device = Literal["auto", "cpu", "cuda"]
Precision = Literal["auto", "bf16", "fp32"]


def training_device(name: Device) -> torch.device:
    """The device of that name; `auto` takes the GPU where one is.

    Raises:
        ConfigError: no GPU is here.
    """
    if name == "cuda" and not torch.cuda.is_available():
        raise ConfigError("run.device: cuda, but torch finds no GPU here; set it to auto or cpu")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def product_dtype(precision: Precision, device: torch.device) -> torch.dtype:
    """Of matrix products in training; weights and sums stay float32.

    `auto` takes bfloat16 where the device multiplies it in hardware.
    """
    if precision == "auto":
        has = cpu_has_bf16() if device.type == "cpu" else torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if has else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def cpu_has_bf16() -> bool:
    """Whether this CPU has bfloat16 products (AVX512-BF16, AMX or Arm's); a torch that cannot tell says no."""
    tell = getattr(torch.cpu, "get_capabilities", None)
    capabilities: Mapping[str, Any] = tell() if tell is not None else {}
    return any(bool(capabilities.get(name)) for name in ("avx512_bf16", "amx_bf16", "bf16"))

"""What is fast on this machine."""

from __future__ import annotations

import os
import shutil
import time
from functools import partial
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def fastest_precision(device: torch.device) -> Literal["float32", "bf16"]:
    """bf16 on a GPU that has it, and on a CPU whose products are faster in it (measured, some 20 ms)."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if _seconds(torch.bfloat16) < 0.8 * _seconds(torch.float32) else "float32"


def compiles() -> bool:
    """Whether torch.compile finds the C++ compiler that it needs on a CPU."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def fuse_attention(module: nn.Module, fused: bool) -> None:
    """PyTorch's fused attention or the plain one: on a CPU the backward of the fused one is half of a step."""
    for layer in module.modules():
        if hasattr(layer, "fused_attn"):  # timm's attention, whatever room its version keeps it in
            layer.fused_attn = fused  # type: ignore[assignment]


def add_bias_after(module: nn.Module) -> None:
    """Each linear layer's bias added to the product, not the product to copies of the bias.

    On a CPU torch.compile leaves the latter to PyTorch, but fuses the former with what follows: some 3 % of a step.
    """

    def forward(layer: nn.Linear, tokens: Tensor) -> Tensor:
        product = F.linear(tokens, layer.weight)
        return product if layer.bias is None else product + layer.bias.to(product.dtype)

    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.forward = partial(forward, layer)  # type: ignore[method-assign]


def _seconds(dtype: torch.dtype) -> float:
    matrix = torch.ones(768, 768, dtype=dtype)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    return min(times)

"""What makes training fast on this machine: precision, compilation, attention."""

from __future__ import annotations

import os
import shutil
import time
from functools import partial
from importlib.util import find_spec
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def choose_precision(device: torch.device) -> Literal["float32", "bf16"]:
    """bf16 on a GPU that has it, and on a CPU whose matrix products are faster in it (measured, in some 20 ms)."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    return "bf16" if time_product(torch.bfloat16) < 0.8 * time_product(torch.float32) else "float32"


def can_compile(on_gpu: bool = False) -> bool:
    """Whether there is what torch.compile needs: on a CPU a C++ compiler, on a GPU Triton and its C compiler."""
    if not on_gpu:
        return shutil.which(os.environ.get("CXX", "g++")) is not None
    compilers = [os.environ["CC"]] if "CC" in os.environ else ["gcc", "clang", "cc"]
    supported = torch.cuda.get_device_capability() >= (7, 0)
    return supported and find_spec("triton") is not None and any(map(shutil.which, compilers))


def fuse_attention(module: nn.Module, fused: bool) -> None:
    """Choose PyTorch's fused attention or the plain one: on a CPU the backward of the fused one is half of a step."""
    for layer in module.modules():
        if hasattr(layer, "fused_attn"):  # timm's attention, in whichever module its version has it
            layer.fused_attn = fused  # type: ignore[assignment]


def add_bias_after(module: nn.Module) -> None:
    """Make each linear layer add its bias to the product, instead of the product to copies of the bias.

    On a CPU torch.compile can fuse only the former with what follows, which saves some 3 % of a step.
    """

    def forward(layer: nn.Linear, tokens: Tensor) -> Tensor:
        product = F.linear(tokens, layer.weight)
        return product if layer.bias is None else product + layer.bias.to(product.dtype)

    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            layer.forward = partial(forward, layer)  # type: ignore[method-assign]


def time_product(dtype: torch.dtype, size: int = 768, device: torch.device | None = None, tries: int = 4) -> float:
    """Seconds that a product of two matrices of `size` x `size` takes, the best of some tries; None: on the CPU."""
    matrix = torch.ones(size, size, dtype=dtype, device=device)
    times = []
    for _ in range(tries):
        start = time.perf_counter()
        (matrix @ matrix)[0, 0].item()  # waits for a GPU
        times.append(time.perf_counter() - start)
    return min(times)

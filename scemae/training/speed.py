"""What is fast on this machine."""

from __future__ import annotations

import os
import shutil
import time
from typing import Literal

import torch


def fastest_precision(device: torch.device) -> Literal["float32", "bf16"]:
    """bf16 on a GPU that has it, and on a CPU whose products are faster in it (measured, some 20 ms)."""
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported() else "float32"
    return "bf16" if _seconds(torch.bfloat16) < 0.8 * _seconds(torch.float32) else "float32"


def compiles() -> bool:
    """Whether torch.compile finds the C++ compiler that it needs on a CPU."""
    return shutil.which(os.environ.get("CXX", "g++")) is not None


def _seconds(dtype: torch.dtype) -> float:
    matrix = torch.ones(768, 768, dtype=dtype)
    times = []
    for _ in range(4):
        start = time.perf_counter()
        matrix @ matrix
        times.append(time.perf_counter() - start)
    return min(times)

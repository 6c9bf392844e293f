"""How well a run uses its hardware: images per second, share of the peak, waits for data (`--profile`).

The share of the peak is the model FLOPs utilisation: the products that a step needs, counted, over what the hardware
could multiply in that time. Elementwise work and the optimizer are not counted, so 1 is out of reach.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.flop_counter import FlopCounterMode

from scemae.training.acceleration import fuse_attention, time_product
from scemae.training.run_config import Precision

# Dense products, 1e12 FLOP/s, in bf16 and in float32 without TF32, as NVIDIA's data sheets state them. The first name
# that is part of the GPU's counts.
PEAKS = {
    "H200": (989.0, 67.0),
    "H100 PCIe": (756.0, 51.0),
    "H100 NVL": (835.0, 60.0),
    "H100": (989.0, 67.0),
    "A100": (312.0, 19.5),
    "A10G": (70.0, 35.0),
    "A10": (125.0, 31.2),
    "L40S": (362.0, 91.6),
    "L40": (181.0, 90.5),
    "L4": (121.0, 30.3),
    "RTX 4090": (165.0, 82.6),
    "T4": (65.0, 8.1),
    "V100": (125.0, 15.7),
}


class Meter:
    """Measures the steps between one reading of the losses and the next, when everything before is done."""

    def __init__(self) -> None:
        self.laps = list[tuple[int, float, float]]()  # steps, seconds, of these spent waiting for data
        self.restart()

    def restart(self) -> None:
        """Begin to measure."""
        self.began, self.waited = time.perf_counter(), 0.0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """What is done here is waiting for data."""
        start = time.perf_counter()
        yield
        self.waited += time.perf_counter() - start

    def lap(self, steps: int) -> None:
        """So many steps have been made since the beginning."""
        self.laps.append((steps, time.perf_counter() - self.began, self.waited))

    def measured(self) -> tuple[float, float]:
        """Steps per second (median), and the share of the time spent waiting, without the first lap: it compiles."""
        steps, seconds, waited = zip(*(self.laps[1:] or self.laps), strict=True)
        rates = [count / duration for count, duration in zip(steps, seconds, strict=True)]
        return statistics.median(rates), sum(waited) / sum(seconds)


def count_flops(
    module: nn.Module,
    prepare: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]],
    loaded: tuple[Tensor, ...],
    precision: Precision,
) -> int:
    """Floating-point operations of the products and convolutions of one pass, forward and backward.

    Leaves the module with plain attention: the backward of the fused one computes it again, which is not counted.
    """
    fuse_attention(module, False)
    # Copies: its gradients and statistics are not the run's.
    tensors = {name: p.detach().clone().requires_grad_(p.requires_grad) for name, p in module.named_parameters()}
    tensors |= {name: buffer.clone() for name, buffer in module.named_buffers()}
    counter = FlopCounterMode(display=False)
    with counter, torch.autocast(loaded[0].device.type, torch.bfloat16, enabled=precision == "bf16"):
        functional_call(module, tensors, prepare(loaded))["loss"].backward()
    return int(counter.get_total_flops())


def find_peak(device: torch.device, precision: Precision) -> tuple[float, str]:
    """FLOP/s of dense products, and where that is from: the data sheet of the GPU, or measured here."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        for part, peaks in PEAKS.items():
            if part in name:
                return peaks[precision == "float32"] * 1e12, "data sheet"
    return _measure_peak(device, precision), "measured"


def _measure_peak(device: torch.device, precision: Precision) -> float:
    size = 1024 if device.type == "cpu" else 8192
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    return 2 * size**3 / time_product(dtype, size, device, tries=5)


def describe_profile(profile: Mapping[str, Any]) -> str:
    """A line about what `profile.json` holds."""
    return (
        f"{profile['images_per_second']:,.0f} images/s (median), {profile['tflop_per_second']:.3g} TFLOP/s, "
        f"{profile['utilisation']:.1%} of {profile['peak_tflop_per_second']:.3g} ({profile['peak']}), "
        f"{profile['loader_share']:.1%} of the time spent waiting for data"
    )

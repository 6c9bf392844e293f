"""Arithmetic that all verbs share, and that is their own, whatever torch is set to around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor


@contextmanager
def own_arithmetic() -> Iterator[None]:
    """No autocast, and new tensors on the CPU, whatever the caller is in."""
    elsewhere = torch.get_default_device().type != "cpu"
    with (
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        torch.device("cpu") if elsewhere else nullcontext(),
    ):
        yield


def concatenated(backbone_map: Tensor, projected_map: Tensor, mode: str) -> Tensor:
    """Both maps side by side (paper Sec. 4.2), (B, D + C, h, w); `mode`: the projector's.

    The shares of a spatial softmax are far smaller than the backbone's numbers: there each part has length 1 in a cell.
    """
    parts = [backbone_map, projected_map]
    return torch.cat(parts if mode == "linear" else [F.normalize(part, dim=1) for part in parts], dim=1)

"""Arithmetic that all verbs share, and that is their own, whatever torch is set to around them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def default_numerics() -> Iterator[None]:
    """No autocast, and new tensors on the CPU, whatever the caller is in."""
    elsewhere = torch.get_default_device().type != "cpu"
    with (
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        torch.device("cpu") if elsewhere else nullcontext(),
    ):
        yield

"""The settings of torch that results depend on, fixed whatever the caller has set."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch


@contextmanager
def default_numerics() -> Iterator[None]:
    """Without autocast, and with the CPU as default device, whatever the caller has set."""
    elsewhere = torch.get_default_device().type != "cpu"
    with (
        torch.autocast("cpu", enabled=False),
        torch.autocast("cuda", enabled=False),
        torch.device("cpu") if elsewhere else nullcontext(),
    ):
        yield

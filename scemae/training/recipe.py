"""What a trainer trains, and what a run of it was."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from PIL import Image
from torch import Tensor, nn

from scemae.training.run_config import Precision, RunConfig


class Recipe(Protocol):
    """What the engine trains."""

    origin: str  # SHA-256 of the model that the run needs besides its checkpoint; "": none
    compiles: bool  # whether torch.compile makes it faster on a CPU

    @property
    def config(self) -> RunConfig:
        """Batches, schedule, optimizer, seed."""

    @property
    def module(self) -> nn.Module:
        """What learns: called with what `prepare` returns, it returns a dictionary with the "loss"."""

    @property
    def report_every(self) -> int:
        """Steps between two reports: a picture, and what `measure` returns."""

    def keep_on(self, device: torch.device, precision: Precision) -> None:
        """Keep on this device what `load` takes from, where it fits; `precision`: of what `prepare` computes."""

    def load(self, step: int, part: slice) -> tuple[Tensor, ...]:
        """Part of the batch of a step, a function of the step alone; called ahead, in another thread."""

    def prepare(self, loaded: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The arguments of the module, from what `load` returned, now on the module's device."""

    def draw_report(self) -> Image.Image:
        """A picture of what the current weights do; called on the first process only, like `measure`."""

    def measure(self) -> dict[str, float]:
        """What is logged about the current weights besides the loss."""

    def export(self, folder: Path, history: History) -> None:
        """Fill an empty folder with the model."""


@dataclass(frozen=True, kw_only=True)
class History:
    """What a run was."""

    lines: list[dict[str, float]]  # of its log
    step: int  # updates of the weights
    hours: float  # of work, over all resumes
    hardware: str  # that each part of it ran on, such as "2 x A100, bf16, then 1 x A100, bf16"

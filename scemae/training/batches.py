"""What a step sees: which faces, from disk or from a GPU's memory, their random crops, how views are normalised."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from scemae.model.config import ModelConfig
from scemae.training.run_config import Stage1Config


class Batches:
    """Which faces are in the batch of which step: every face once per epoch, in a new order each time.

    `rows(step)` is a function of the seed and the step alone; so are the random numbers of `rng(step)`.
    """

    def __init__(self, count: int, batch_size: int, seed: int | Sequence[int]) -> None:
        self.count, self.batch_size = count, batch_size
        self.seed = [seed] if isinstance(seed, int) else list(seed)
        self._order = lru_cache(maxsize=2)(self._epoch)

    def rows(self, step: int) -> NDArray[np.int64]:
        """The faces (batch_size,) of a step."""
        epochs, places = np.divmod(step * self.batch_size + np.arange(self.batch_size), self.count)
        return np.concatenate([self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])

    def rng(self, step: int) -> np.random.Generator:
        """The generator of everything random in a step."""
        return np.random.default_rng([*self.seed, 1, step])

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([*self.seed, 0, epoch]).permutation(self.count)


class Squares:
    """The squares of a pack: mapped from disk, or in the memory of a GPU that has the room."""

    def __init__(self, squares: NDArray[np.uint8]) -> None:
        self.tensor = torch.from_numpy(squares)

    def keep_on(self, device: torch.device) -> None:
        """Keep them on this device, unless they would take more than half of what is free on it."""
        if device.type == "cuda" and self.tensor.nbytes <= torch.cuda.mem_get_info(device)[0] / 2:
            self.tensor = self.tensor.to(device)

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, rows: NDArray[np.int64]) -> Tensor:
        """A copy of some (n, S, S, 3), where they are kept."""
        return self.tensor[torch.from_numpy(rows).to(self.tensor.device)]


def random_crops(
    rng: np.random.Generator,
    count: int,
    *,
    size: int,
    input_size: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    flip: bool = True,
) -> NDArray[np.float32]:
    """Affines (count, 2, 3) from pixels of an input to pixels of its square: random crops.

    Each covers a fraction of the square, of `size` px, between the two areas, and has a width over height between the
    two ratios; a side that would be longer than the square's is cut off (He et al. draw again). With `flip` half of
    them are mirrored.
    """
    areas = rng.uniform(*area, count) * size**2
    shapes = np.exp(rng.uniform(math.log(ratio[0]), math.log(ratio[1]), count))
    sides = np.minimum(np.sqrt([areas * shapes, areas / shapes]), size)
    starts = rng.uniform(0, 1, (2, count)) * (size - sides)
    mirrored = (rng.random(count) < 0.5) & flip
    scales = sides / input_size
    across = np.where(mirrored, -scales[0], scales[0])
    left = np.where(mirrored, starts[0] + sides[0], starts[0])
    zero = np.zeros(count)
    rows = [[across, zero, left + across / 2 - 0.5], [zero, scales[1], starts[1] + scales[1] / 2 - 0.5]]
    return np.moveaxis(np.array(rows), -1, 0).astype(np.float32)


def mean_and_std(config: Stage1Config | ModelConfig) -> Tensor:
    """Mean and standard deviation of the normalisation, (2, 3, 1, 1)."""
    return torch.tensor([config.mean, config.std]).view(2, 3, 1, 1)


def normalise(views: Tensor, config: Stage1Config | ModelConfig) -> Tensor:
    """Views (b, 3, H, W) of 0..1 as the model sees them, on their device."""
    mean, std = mean_and_std(config).to(views.device)
    return (views - mean) / std

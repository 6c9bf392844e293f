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

GAMMA, FIRST, SECOND = (number - 2**64 for number in (0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB))


class Draws:
    """Random numbers that follow from a key alone, the same on every device and each computed by itself.

    SplitMix64 (Steele, Lea and Flood, OOPSLA 2014), whose state is a counter. Those of torch.Generator differ from one
    kind of GPU to the next.
    """

    def __init__(self, key: Sequence[int], device: torch.device) -> None:
        self.state = int(np.random.SeedSequence(key).generate_state(1, np.uint64).view(np.int64)[0])
        self.device, self.drawn = device, 0

    def bits(self, *shape: int) -> Tensor:
        """Integers of 64 random bits, int64, so half of them below 0."""
        count = math.prod(shape)
        numbers = torch.arange(self.drawn + 1, self.drawn + 1 + count, device=self.device) * GAMMA + self.state
        self.drawn += count
        for shift, factor in ((30, FIRST), (27, SECOND)):
            numbers = (numbers ^ _shift_right(numbers, shift)) * factor
        return (numbers ^ _shift_right(numbers, 31)).view(shape)

    def uniform(self, low: float, high: float, *shape: int) -> Tensor:
        """Numbers in low..high, float64."""
        return low + (high - low) * 2.0**-53 * _shift_right(self.bits(*shape), 11).double()


def _shift_right(numbers: Tensor, places: int) -> Tensor:
    """The 64 bits of each number moved to the right, zeros after them."""
    return (numbers >> places) & (2 ** (64 - places) - 1)


class Batches:
    """Which faces are in the batch of which step: every face once per epoch, in a new order each time.

    `rows(step)` is a function of the seed and the step alone; so are the random numbers of `rng(step)`. `rows_on` and
    `draws` are those of a recipe that draws on a GPU, or on a CPU the same.
    """

    def __init__(self, count: int, batch_size: int, seed: int | Sequence[int]) -> None:
        self.count, self.batch_size = count, batch_size
        self.seed = [seed] if isinstance(seed, int) else list(seed)
        self._order, self._order_on = lru_cache(maxsize=2)(self._epoch), lru_cache(maxsize=2)(self._epoch_on)

    def rows(self, step: int) -> NDArray[np.int64]:
        """The faces (batch_size,) of a step."""
        epochs, places = np.divmod(step * self.batch_size + np.arange(self.batch_size), self.count)
        return np.concatenate([self._order(int(epoch))[places[epochs == epoch]] for epoch in np.unique(epochs)])

    def rng(self, step: int) -> np.random.Generator:
        """The generator of everything random in a step."""
        return np.random.default_rng([*self.seed, 1, step])

    def rows_on(self, step: int, device: torch.device) -> Tensor:
        """The faces (batch_size,) of a step."""
        start, end = step * self.batch_size, (step + 1) * self.batch_size
        epochs = [(epoch, epoch * self.count) for epoch in range(start // self.count, (end - 1) // self.count + 1)]
        return torch.cat(
            [self._order_on(epoch, device)[max(0, start - first) : end - first] for epoch, first in epochs]
        )

    def draws(self, step: int, device: torch.device) -> Draws:
        """What everything random in a step is drawn from."""
        return Draws([*self.seed, 1, step], device)

    def _epoch_on(self, epoch: int, device: torch.device) -> Tensor:
        return Draws([*self.seed, 0, epoch], device).bits(self.count).argsort()

    def _epoch(self, epoch: int) -> NDArray[np.int64]:
        return np.random.default_rng([*self.seed, 0, epoch]).permutation(self.count)


class Squares:
    """The squares of a pack: mapped from disk, or in the memory of a GPU that has the room."""

    def __init__(self, squares: NDArray[np.uint8]) -> None:
        self.tensor = torch.from_numpy(squares)

    @property
    def device(self) -> torch.device:
        """Where they are kept."""
        return self.tensor.device

    def keep_on(self, device: torch.device) -> bool:
        """Keep them on this device, a GPU, unless they take more than half of what is free on it; whether they are."""
        if device.type == "cuda" and self.tensor.nbytes <= torch.cuda.mem_get_info(device)[0] / 2:
            self.tensor = self.tensor.to(device)
        return self.device.type == "cuda"

    def __len__(self) -> int:
        return len(self.tensor)

    def __getitem__(self, rows: NDArray[np.int64] | Tensor) -> Tensor:
        """A copy of some (n, S, S, 3), where they are kept."""
        return self.tensor[torch.as_tensor(rows, device=self.device)]


def random_crops(
    draws: Draws,
    count: int,
    *,
    size: int,
    input_size: int,
    area: tuple[float, float],
    ratio: tuple[float, float],
    flip: bool = True,
) -> Tensor:
    """Affines (count, 2, 3), float32, from pixels of an input to pixels of its square: random crops.

    Each covers a fraction of the square, of `size` px, between the two areas, and has a width over height between the
    two ratios; a side that would be longer than the square's is cut off (He et al. draw again). With `flip` half of
    them are mirrored.
    """
    areas = draws.uniform(*area, count) * size**2
    shapes = draws.uniform(math.log(ratio[0]), math.log(ratio[1]), count).exp()
    sides = torch.stack([areas * shapes, areas / shapes]).sqrt().clamp(max=size)
    starts = draws.uniform(0, 1, 2, count) * (size - sides)
    mirrored = draws.uniform(0, 1, count) < 0.5 * flip
    across, down = sides / input_size
    left = torch.where(mirrored, starts[0] + sides[0], starts[0])
    across, zero = torch.where(mirrored, -across, across), torch.zeros_like(across)
    rows = [across, zero, left + across / 2 - 0.5, zero, down, starts[1] + down / 2 - 0.5]
    return torch.stack(rows, dim=1).unflatten(1, (2, 3)).float()


def mean_and_std(config: Stage1Config | ModelConfig) -> Tensor:
    """Mean and standard deviation of the normalisation, (2, 3, 1, 1)."""
    return torch.tensor([config.mean, config.std]).view(2, 3, 1, 1)


def normalise(views: Tensor, config: Stage1Config | ModelConfig) -> Tensor:
    """Views (b, 3, H, W) of 0..1 as the model sees them, on their device."""
    mean, std = mean_and_std(config).to(views.device)
    return (views - mean) / std
